"""Single-threaded processes that keep the machine busy while something is timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.case import Contender, itself


class Busy:
    """Processes that keep the machine busy: they run after ``go`` and are stopped by ``hold``."""

    def __init__(self, count: int) -> None:
        self._command = [sys.executable, "-c", "while True: pass"]
        self._count, self._pids = count, []
        self._finish: Callable[[], object] = lambda: None

    def go(self) -> None:
        if not self._pids:
            processes = [subprocess.Popen(self._command) for _ in range(self._count)]
            self._pids = [process.pid for process in processes]
            self._finish = weakref.finalize(self, _end, processes)
        self._tell(signal.SIGCONT)

    def hold(self) -> None:
        self._tell(signal.SIGSTOP)

    def _tell(self, what: signal.Signals) -> None:
        for pid in self._pids:
            os.kill(pid, what)


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def beside(busy: Busy, contender: Contender) -> Contender:
    """The contender, timed while the processes run; they are stopped at all other times."""

    def prepare(own: Any) -> Any:
        state = (contender.prepare or itself)(own)
        busy.go()
        return state

    def run(state: Any) -> Any:
        try:
            return contender.run(state)
        finally:
            busy.hold()

    return replace(contender, prepare=prepare, run=run)
