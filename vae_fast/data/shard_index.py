"""The index of a folder of shards, and checks of the files that it lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from vae_fast.data.npy import map_npy

INDEX = "index.json"
FORMAT = "vae_fast shards"
VERSION = 1
DTYPES = {"uint8": torch.uint8, "bool": torch.bool, "float32": torch.float32,
          "float16": torch.float16, "float64": torch.float64}  # fmt: skip


def read_index(folder: Path) -> dict:
    """index.json, checked for what it must have.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it isn't one of ours.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: {folder} holds no shards, or `pack` didn't finish; run it again"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of shards: its format isn't {FORMAT!r}")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {index.get('version')!r}, and this vae_fast reads {VERSION}"
        )
    needed = {"samples", "shape", "dtype", "labelled", "name", "provenance", "shards"}
    if missing := needed - set(index):
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    if index["dtype"] not in DTYPES:
        raise ValueError(f"{path}: dtype {index['dtype']!r} is none of {', '.join(DTYPES)}")
    for entry in index["shards"]:
        names = [entry["images"], *([entry["labels"]] if index["labelled"] else [])]
        for name in names:
            if Path(name).name != name:  # an index must not lead out of its folder
                raise ValueError(f"{path}: {name!r} is not a plain file name")
    return index


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
        raise FileNotFoundError(f"shard {path} is missing") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"shard {path} is damaged: {error}") from error


def check_header(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = map_shard(path)
    if array.shape != shape or array.dtype.name != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"shard {path} is {array.dtype} of shape {array.shape}, "
            f"and the index says {dtype} of {shape}"
        )
