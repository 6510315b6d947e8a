"""SIGINT and SIGTERM as a request to stop: the run finishes its step, writes a checkpoint and
ends."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, final

from vae_fast.train.distributed import World

STOPPING = (signal.SIGINT, signal.SIGTERM)
MEETING_SECONDS = 1.0  # between two agreements of ranks; torchrun kills 30 s after its SIGTERM


class Interrupted(Exception):
    """A signal stopped the run, and everything is saved. ``signal`` is its number."""

    def __init__(self, number: int, step: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step}, all saved: "
            f"`vae-fast resume {folder}` goes on"
        )
        self.signal = number


@final
class StopSignals:
    """Within the block, stores a signal in ``asked``. A second one has its usual effect."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._met = (0, 0.0)  # step and time of the ranks' last agreement
        self._meets_at = 0  # step of the next one

    def __enter__(self) -> StopSignals:
        self.asked = None
        # Python allows handlers in this thread only
        if threading.current_thread() is threading.main_thread():
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

    def agreed_signal(self, world: World, step: int, *, now: bool = False) -> int | None:
        """The signal that any rank received. Several ranks communicate about it, at steps that they
        also agree on.

        Args:
            now: communicate at this step in any case.
        """
        if not world.is_distributed:
            return self.asked
        if not now and step < self._meets_at:
            return None
        (before, began), ended = self._met, time.perf_counter()
        pace = (ended - began) / max(1, step - before)
        asked, pace = world.maximum(self.asked or 0, pace)
        steps = MEETING_SECONDS / max(pace, 1e-6) if began else 1.0
        self._met, self._meets_at = (step, ended), step + max(1, int(steps))
        self.asked = int(asked) or None
        return self.asked
