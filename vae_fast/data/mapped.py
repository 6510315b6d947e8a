"""Detect a memory-mapped file that changes while it is read, which could end the process."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class MappedFile:
    """The file of a memory-mapped array, in its state when the array was made.

    Reading beyond the new end of a shortened file gives SIGBUS, which is no Python exception, or
    zeros up to the end of a page. Replacing or removing the file is harmless: the map keeps the
    opened file.
    """

    path: str
    before: os.stat_result = field(repr=False)

    @classmethod
    def of(cls, array: np.memmap) -> MappedFile | None:
        """The file of a memory map; None if it has no path."""
        path = array.filename
        if not isinstance(path, (str, Path)):
            return None
        try:
            return cls(str(path), os.stat(path))
        except OSError:
            return None

    def check(self) -> None:
        """Call this before and after values are read.

        If the file is cut between the first call and the read, the process still ends.

        Raises:
            OSError: the file is shorter than it was. Any other change gives one warning.
        """
        try:
            now = os.stat(self.path)
        except OSError:
            return
        before = self.before
        if now.st_mtime_ns == before.st_mtime_ns and now.st_size == before.st_size:
            return
        if not os.path.samestat(now, before):
            return
        if now.st_size < before.st_size:
            raise OSError(
                f"{self.path} was cut from {before.st_size:,} to {now.st_size:,} bytes while it was "
                "read: put the whole file back and begin again; a run resumes from its last checkpoint"
            )
        self.before = now
        warnings.warn(
            f"{self.path} was written to while it is read: from here on its values are those that it "
            "has now. Train on a copy, or write the new file beside it and rename it",
            stacklevel=2,
        )
