"""Arrays in .npy and .npz files. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from vae_fast.data.arrays import ArrayData, from_array
from vae_fast.data.npy import map_npy

SUFFIXES = (".npy", ".npz")
_PICKLE = "it holds Python objects, which would run code when loaded: save an array of numbers"


def read_file(path: Path, *, bounded: bool = True) -> ArrayData:
    """The data in one .npy file, memory-mapped, or in one .npz file, loaded.

    An .npz file holds `images` and perhaps `labels`; an array that is alone in its file may have
    any name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: it isn't what its name says, or its array doesn't fit (`from_array`).
    """
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; an .npy or .npz file is needed")
    images, labels = _open_npy(path) if path.suffix == ".npy" else _open_npz(path)
    how = "memory-mapped" if isinstance(images, np.memmap) else "loaded"
    provenance = f"{path.resolve()}, {how}"
    return from_array(images, labels, name=path.name, provenance=provenance, bounded=bounded)


def _open_npy(path: Path) -> tuple[np.ndarray, None]:
    try:
        return map_npy(path), None
    except ValueError as error:
        if "Python objects" in str(error):
            raise ValueError(f"{path} can't be read: {_PICKLE}") from error
        raise ValueError(f"{path} is not a whole .npy file: {error}") from error


def _open_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    # np.load would take anything that isn't a zip file for a pickle, and say so misleadingly.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a whole .npz file: it is not a zip archive")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            key = names[0] if len(names) == 1 else "images"
            images = file[key] if key in names else None
            labels = file["labels"] if "labels" in names and key != "labels" else None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{path} can't be read: {_PICKLE}") from error
        raise ValueError(f"{path} is not a whole .npz file: {error}") from error
    if images is None:
        raise ValueError(
            f"{path} holds {', '.join(names) or 'nothing'}; the images must be under the name "
            "images, their labels under labels"
        )
    if isinstance(images, bytes):  # a zip member that isn't .npy
        raise TypeError(f"{path}: {key} is not an array; write the file with np.savez")
    return images, labels
