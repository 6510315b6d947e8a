"""Atomic writing of files, and safe reading of untrusted text and YAML files.

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

# A full or broken disk. Any other error of fsync means that fsync is not supported here.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a new, empty file to write to. At the end of the block it atomically becomes ``path``;
    after an error it is removed."""
    beside = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    open(beside, "xb").close()  # "x": fails if the name exists, so that a link is not followed
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk; FileExistsError if it exists."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, if its file system supports this."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # network drives and Windows cannot open folders
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
    """The default ``say``: a warning."""
    warnings.warn(text, stacklevel=3)


def set_aside(path: Path, why: str, say: Say = warn) -> Path:
    """Rename a file or folder to a name that this package neither reads nor removes, and say so."""
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
    """The text of a regular file of at most ``most`` bytes, else ValueError; OSError if it cannot
    be read."""
    size = check_regular(path)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; at most {most:,} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} ends it") from None


def check_regular(path: Path) -> int:
    """The size of a regular file; ValueError for anything else.

    Reading a pipe may block for ever, and a device may have no end.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: a file is wanted")
    return facts.st_size


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or ValueError.

    Files whose aliases expand to more than ``YAML_NODES`` values, or without end, are refused.
    """
    yaml = need("yaml", "reading a configuration")
    text = read_text(path, CONFIG_BYTES)
    try:
        # The C loader if it exists: the time of Python's grows with the square of the depth.
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
        raise ValueError(f"{path} is not YAML: {_in_a_line(error)}") from None
    except (ValueError, TypeError, OverflowError) as error:  # an impossible date or number
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is not YAML: {_in_a_line(error)}") from None
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
    """The number of values in a node, with each use of an alias counted."""
    if node is None:
        return 1
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise ValueError(f"{path} has an alias within what it stands for: it would have no end")
        return count
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
