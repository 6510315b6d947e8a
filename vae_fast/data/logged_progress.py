"""Progress lines for reading that takes long, by the logger vae_fast.data."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("vae_fast.data")
FIRST, EACH = 3.0, 10.0  # seconds until the first line, and between lines


class LoggedProgress:
    """Logs ``what: done of total unit``, at first after three seconds, then every ten."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._next = time.monotonic() + FIRST

    def show(self, done: int) -> None:
        if (now := time.monotonic()) >= self._next and done < self._total:
            self._next = now + EACH
            logger.info("%s: %s of %s %s", self._what, f"{done:,}", f"{self._total:,}", self._unit)
