"""The index of a folder of shards, and checks of the files that it lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.data.npy import check_regular, map_npy

INDEX = "index.json"
FORMAT = "vae_fast shards"
VERSION = 1
_LARGEST = 1 << 30  # bytes of an index with some ten million shards
DTYPES = {"uint8": torch.uint8, "bool": torch.bool, "float32": torch.float32,
          "float16": torch.float16, "float64": torch.float64}  # fmt: skip


def read_index(folder: Path) -> dict[str, Any]:
    """The content of index.json, checked.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it isn't one of ours.
    """
    path = folder / INDEX
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: {folder} holds no shards, or `pack` didn't finish; run it again"
        )
    try:
        check_regular(path)
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"it has {size:,} bytes, and an index has {_LARGEST:,} at most")
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: deep nesting
        raise ValueError(f"{path} can't be read: {error}; run pack again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of shards: its format isn't {FORMAT!r}; run pack")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {index.get('version')!r}, and this vae_fast reads {VERSION}: run pack "
            "again, or read it with the vae_fast that wrote it"
        )
    _check_fields(path, index, _FIELDS)
    if index["dtype"] not in DTYPES:
        raise ValueError(
            f"{path}: dtype {index['dtype']!r} is none of {', '.join(DTYPES)}; run pack again"
        )
    for entry in index["shards"]:
        labelled = _LABELS if index["labelled"] else {}
        named = _FILES if "files" in entry else {}
        _check_fields(path, entry, _SHARD | labelled | named)
        for field in ("images", *labelled.keys() & {"labels"}, *named.keys() & {"files"}):
            name = entry[field]
            # an index must not name files outside its folder
            if Path(name).name != name or "\0" in name:
                raise ValueError(
                    f"{path}: {name!r} is not a plain file name, of a file beside the index"
                )
    return index


def _check_fields(path: Path, found: dict[str, Any], fields: dict[str, Any]) -> None:
    if missing := sorted(set(fields) - set(found)):
        raise ValueError(f"{path} lacks {', '.join(missing)}; run pack again")
    for name, (right, what) in fields.items():
        if not right(found[name]):
            raise ValueError(
                f"{path}: {name} must be {what}, and is {str(found[name])[:60]!r}; run pack again"
            )


def _count(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 62


def _text(value: object) -> bool:
    return isinstance(value, str)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) < 32 and all(map(_count, value))


def _shards(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(v, dict) for v in value)


_TEXT = (_text, "text")
_FIELDS = {
    "samples": (_count, "a number above 0"),
    "shape": (_sizes, "a list of numbers above 0"),
    "dtype": _TEXT,
    "labelled": (lambda value: isinstance(value, bool), "true or false"),
    "name": _TEXT,
    "provenance": _TEXT,
    "shards": (_shards, "a list of objects"),
}
_SHARD = {"samples": (_count, "a number above 0"), "images": _TEXT, "sha256": _TEXT}
_LABELS = {"labels": _TEXT, "labels_sha256": _TEXT}
_FILES = {"files": _TEXT}


def read_names(path: Path, count: int) -> list[str]:
    """The names of a shard's samples.

    Raises:
        ValueError: the file is not a list of ``count`` names.
    """
    try:
        check_regular(path)
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}; run pack again") from error
    if not isinstance(names, list) or len(names) != count or not all(map(_text, names)):
        raise ValueError(f"{path} must be a list of {count} names of files; run pack again")
    return names


def check_sha256(path: Path, array: np.ndarray, expected: str) -> None:
    """Raise ValueError, naming the file, unless the array's bytes have this SHA-256."""
    found = sha256(array)
    if found != expected:
        raise ValueError(
            f"shard {path} is damaged: its SHA-256 is {found}, and the index says {expected}; "
            "get it again, or delete it and the index and run pack again"
        )


def sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's values, as lowercase hex."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()


def map_shard(path: Path) -> np.ndarray:
    try:
        return map_npy(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"shard {path} is missing: put it back, or run pack again"
        ) from None
    except (ValueError, OSError) as error:
        raise ValueError(
            f"shard {path} is damaged: {error}; get it again, or run pack again"
        ) from error


def check_header(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = map_shard(path)
    if array.shape != shape or array.dtype.name != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"shard {path} is {array.dtype} of shape {array.shape}, "
            f"and the index says {dtype} of {shape}: run pack again"
        )
