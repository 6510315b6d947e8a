"""state.json of a checkpoint: everything but tensors, with the checksums of all files.

It distinguishes our checkpoints from other folders. Its content is checked before it is used: any
damage raises CheckpointError.
"""

from __future__ import annotations

import json
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT, VERSION = "vae_fast checkpoint", 3
OLDEST = 2  # the oldest readable version; its state.json has no checksum and no sizes
WEIGHTS, TRAINING, STATE, SHARDS = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "shards",
)
LARGEST = 1 << 28  # bytes of a state.json; the generators of a thousand ranks take a tenth of this
_FILE = re.compile(
    rf"{re.escape(WEIGHTS)}|{re.escape(TRAINING)}|{SHARDS}/[\w.-]+\.safetensors", re.ASCII
)


class CheckpointError(ValueError):
    """A folder is not a whole checkpoint of ours. The message names the file and the reason."""


def encode(step: int, state: Any, checksums: dict[str, int], sizes: dict[str, int]) -> bytes:
    """The content of state.json for a checkpoint with these files, named relative to its folder."""
    content = {"format": FORMAT, "version": VERSION, "step": step}
    content |= {"crc32": checksums, "bytes": sizes, "state": state}
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1).encode()


def read(folder: Path) -> dict[str, Any]:
    """The content of ``folder``'s state.json: step, crc32, bytes (possibly empty) and state.

    Raises CheckpointError if it is no checkpoint, not whole, or of an unreadable version.
    """
    path = folder / STATE
    try:
        content = json.loads(read_bytes(path, at_most=LARGEST))
    except CheckpointError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:  # not JSON, or nested too deeply
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by vae_fast")
    version = content.get("version")
    if type(version) is not int:
        raise CheckpointError(f"{path} is damaged: its version is {_short(version)}")
    if not OLDEST <= version <= VERSION:
        what = "upgrade vae_fast" if version > VERSION else "use the one that wrote it"
        raise CheckpointError(
            f"{folder} has checkpoint version {version}, this vae_fast reads {OLDEST} to "
            f"{VERSION}: {what}"
        )
    checksum = content.pop("checksum", None)
    if version > OLDEST and checksum != _checksum(content):
        raise CheckpointError(f"{path} is truncated or damaged: its checksum is another one")
    content.setdefault("bytes", {})
    for key, fits in _FIELDS.items():
        if not fits(content.get(key)):
            raise CheckpointError(
                f"{path} is damaged: its field {key} is {_short(content.get(key))}"
            )
    return content


def read_bytes(path: Path, *, at_most: int, exactly: int | None = None) -> bytes:
    """The content of a checkpoint's file, if the file has the expected size."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path} is not a file")
        if about.st_size > at_most or exactly not in (None, about.st_size):
            raise CheckpointError(
                f"{path} is truncated or damaged: it has {about.st_size} bytes, and "
                f"{f'at most {at_most}' if exactly is None else exactly} are expected"
            )
        return path.read_bytes()
    except FileNotFoundError:
        kind = "a checkpoint" if path.name == STATE else "whole"
        raise CheckpointError(f"{path.parent} is not {kind}: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory") from None


def _checksum(content: dict[str, Any]) -> int:
    """A checksum of the values, independent of the file's layout."""
    return zlib.crc32(json.dumps(content).encode())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_of_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _FILE.fullmatch(name) and _is_count(number) for name, number in value.items()
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "crc32": lambda value: _are_of_files(value) and {WEIGHTS, TRAINING} <= set(value),
    "bytes": _are_of_files,
    "state": lambda value: isinstance(value, dict),
}


def _short(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value) if isinstance(value, (int, float, str, bool)) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:40]}..."
