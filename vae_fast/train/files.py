"""Files that appear whole or not at all, under temporary names that nobody else can have."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], object]

# A disk that is full or broken. Any other error of fsync means that it is not supported here.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a new, empty file to write to, which becomes ``path`` at once at the end, or never."""
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    open(beside, "xb").close()  # "x": whatever has this name already, a link say, is not followed
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk; FileExistsError if there is one."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, where its file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # network drives and Windows open no folders
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise


def warn(text: str) -> None:
    """The ``say`` of those who have no other."""
    warnings.warn(text, stacklevel=3)


def set_aside(path: Path, why: str, say: Say = warn) -> Path:
    """Rename ``path``, of any kind, to a name that nothing here reads or removes, and say so."""
    for number in itertools.count(1):
        suffix = "" if number == 1 else f"-{number}"
        aside = path.with_name(f"set-aside-{path.name.lstrip('.')}{suffix}")
        if not os.path.lexists(aside):
            break
    os.rename(path, aside)
    say(f"{path} {why}: it is kept as {aside.name}")
    return aside
