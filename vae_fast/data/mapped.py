"""A mapped file that changes while it is read: said, where reading it would end the process."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class MappedFile:
    """A file that an array is mapped from, as it was when that was made.

    Reading what is no longer in a mapped file is no error that Python knows: it is SIGBUS, or zeros
    up to the end of a page. A file that was replaced or removed is no problem: the map is of the one
    that was opened.
    """

    path: str
    before: os.stat_result = field(repr=False)

    @classmethod
    def of(cls, array: np.memmap) -> MappedFile | None:
        """The file of a memory map; None of one that has no path."""
        path = array.filename
        if not isinstance(path, (str, Path)):
            return None
        try:
            return cls(str(path), os.stat(path))
        except OSError:
            return None

    def check(self) -> None:
        """To be called before and after values are read.

        A cut that comes between the call before and the reading is still the process's end.

        Raises:
            OSError: the file is shorter than it was. Another change of it is warned of, once.
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
