"""SIGINT and SIGTERM as a wish to stop: the run finishes its step, checkpoints and leaves."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, final

from vae_fast.train.distributed import World

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal asked the run to stop, and everything is saved. ``signal`` is its number."""

    def __init__(self, number: int, step: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step}, all saved: "
            f"`vae-fast resume {folder}` goes on"
        )
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

    def agreed(self, world: World, *, now: bool) -> int | None:
        """The signal that asked any rank. Many ranks meet over it only ``now``, at set times."""
        if world.is_distributed:
            self.asked = (world.any(self.asked or 0) or None) if now else self.asked
            return self.asked if now else None
        return self.asked
