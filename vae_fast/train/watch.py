"""A mapped file of data that is cut short under a run: said, where reading it would end the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def watch(data: Any, source: Any) -> Callable[[], None]:
    """A function to call before each batch: OSError if the file that ``data`` maps is shorter.

    Reading what is no longer in a mapped file is no error that Python knows: it is SIGBUS. (A cut
    between the call and the reading still is.) A file that was replaced or removed is no problem:
    the map is of the one that was opened.

    Args:
        data: what is trained on, such as an ArrayData.
        source: the path that it came from, or a NumPy memory map.
    """
    path = getattr(source, "filename", source)
    if not getattr(data, "mapped", False) or not isinstance(path, (str, Path)):
        return lambda: None
    try:
        before = os.stat(path)
    except OSError:
        return lambda: None

    def check() -> None:
        try:
            now = os.stat(path)
        except OSError:
            return
        if os.path.samestat(now, before) and now.st_size < before.st_size:
            raise OSError(
                f"{path} was cut from {before.st_size:,} to {now.st_size:,} bytes under the run: put "
                "the whole file back; checkpoints are as they were, to resume from"
            )

    return check
