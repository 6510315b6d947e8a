"""SIGINT and SIGTERM as a wish to stop: the run finishes its step, checkpoints and leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, final

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal asked the run to stop, and everything is saved. ``signal`` is its number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number


@final
class StopSignals:
    """While entered, remembers a signal in ``asked``; a second one acts as it always does."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.asked = None
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self.__exit__()
