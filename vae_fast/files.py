"""Files written whole or not at all, and text and YAML read from files that anyone may have written.

Imports no torch.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_fast.extras import need

CONFIG_BYTES, TEXT_BYTES = 1 << 16, 1 << 30
YAML_NODES, YAML_DEPTH = 10_000, 50

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


# --- reading -----------------------------------------------------------------------------------


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """The text of a regular file of at most ``most`` bytes, or ValueError; OSError if it can't be read."""
    size = check_regular(path)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; at most {most:,} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} ends it") from None


def check_regular(path: Path) -> int:
    """The size of a regular file; ValueError for anything else.

    A pipe would be waited for without end, and a device may have none.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: a file is wanted")
    return facts.st_size


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, or ValueError.

    A file whose aliases would make it more than ``YAML_NODES`` values, or endless, is refused.
    """
    yaml = need("yaml", "reading a configuration")
    text = read_text(path, CONFIG_BYTES)
    try:
        # In C where there is that: Python's takes a time that is the square of the depth.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        depths = _depths(yaml.parse(text, Loader=loader), yaml)
        for number, depth in enumerate(depths):
            if depth > YAML_DEPTH:
                raise ValueError(f"{path} is nested more than {YAML_DEPTH} deep")
            if number > YAML_NODES:
                raise ValueError(f"{path} holds more than {YAML_NODES:,} values")
        _count(yaml.compose(text, Loader=yaml.SafeLoader), {}, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {_in_a_line(error)}") from None
    except (ValueError, TypeError, OverflowError) as error:  # a date or a number that can't be
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no YAML: {_in_a_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 (the file's fault)
            f"{path} must hold names with values, as `epochs: 3`; it holds a {type(values).__name__}"
        )
    return values


def _depths(events: Any, yaml: Any) -> Any:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        yield depth


def _count(node: Any, known: dict[int, int | None], path: Path) -> int:
    """How many values a node stands for, those of its aliases counted anew each time."""
    if node is None:
        return 1
    if id(node) in known:
        if known[id(node)] is None:
            raise ValueError(f"{path} has an alias within what it stands for: it would have no end")
        return known[id(node)]
    known[id(node)] = None
    parts = node.value if isinstance(node.value, list) else []
    total = 1
    for part in parts:
        total += sum(
            _count(of, known, path) for of in (part if isinstance(part, tuple) else (part,))
        )
        if total > YAML_NODES:
            raise ValueError(
                f"{path} stands for more than {YAML_NODES:,} values, with its aliases written out"
            )
    known[id(node)] = total
    return total


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())
