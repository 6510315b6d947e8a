"""Arrays in .npy and .npz files. Nothing is ever unpickled."""

from __future__ import annotations

import lzma
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from vae_fast.data.arrays import ArrayData, from_array
from vae_fast.data.message_words import shown
from vae_fast.data.npy import (
    OBJECTS,
    check_memory,
    check_regular,
    check_size,
    map_npy,
    read_header,
)
from vae_fast.data.sparse import from_npz, from_sparse

SUFFIXES = (".npy", ".npz")
# Errors of reading an archive. zipfile raises RuntimeError for encryption and unknown compression.
_DAMAGE = (
    ValueError, EOFError, OSError, RuntimeError, OverflowError, MemoryError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
_MOST_DEFLATED = 1032  # the most bytes that one byte of deflate expands to


def read_file(path: Path, *, bounded: bool = True) -> ArrayData:
    """The data in one .npy file, memory-mapped, or in one .npz file, loaded.

    An .npz file holds `images`, and perhaps `labels` (integers or strings), `classes`, the names of
    labels 0, 1, ..., and `files`, a name for each sample. A single array in a file may have any
    name. A file of scipy.sparse.save_npz is a sparse matrix, and stays sparse.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: the content does not match the suffix, or the array does not fit
            (`from_array`).
    """
    if not path.exists() or path.is_dir():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{shown(path)} {kind}; an .npy or .npz file is needed")
    how: dict[str, Any] = {"name": shown(path.name), "bounded": bounded}
    if path.suffix.lower() == ".npy":
        provenance = f"{shown(path.resolve())}, memory-mapped"
        return from_array(_open_npy(path), provenance=provenance, **how)
    return _from_npz(path, provenance=f"{shown(path.resolve())}, loaded", **how)


def _open_npy(path: Path) -> np.ndarray:
    try:
        return map_npy(path)
    except (ValueError, OSError) as error:
        if str(error) == OBJECTS:
            raise ValueError(f"{shown(path)} can't be read: {error}") from error
        raise ValueError(
            f"{shown(path)} is not a whole .npy file: {error}; get it again, or save it anew"
        ) from error


def _from_npz(path: Path, **how: Any) -> ArrayData:
    names = npz_names(path)
    if {"format", "shape", "data"} <= set(names):
        return from_sparse(from_npz(read_npz(path, names), shown(path.name)), **how)
    key = names[0] if len(names) == 1 else "images"
    if key not in names:
        raise ValueError(
            f"{shown(path)} holds {', '.join(map(shown, names)) or 'nothing'}; the images must be "
            "under the name images, their labels under labels"
        )
    if masks := [name for name in names if "mask" in name.lower() and name != key]:
        raise ValueError(
            f"{shown(path)} holds {shown(masks[0])}, and a mask can't be used: fill what it hides, "
            "and save the file without it"
        )
    wanted = [name for name in (key, "labels", "classes", "files") if name in names]
    arrays = read_npz(path, wanted)
    if others := [shown(name) for name in names if name not in wanted]:
        warnings.warn(
            f"{shown(path)}: {', '.join(others)} not used; images, labels, classes and files are",
            stacklevel=4,
        )
    labels, files, classes = (arrays.get(n) if n != key else None
                              for n in ("labels", "files", "classes"))  # fmt: skip
    for name, array in (("files", files), ("classes", classes)):
        if array is not None and (array.dtype.kind != "U" or array.ndim != 1):
            raise TypeError(
                f"{shown(path)}: {name} must be strings (N,), and are {array.dtype} of shape "
                f"{array.shape}"
            )
    names_ = None if files is None else files.tolist()
    data = from_array(arrays[key], labels, files=names_, **how)
    return data if classes is None else data.named(classes.tolist())


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in an .npz file.

    Raises:
        ValueError: it isn't one.
    """
    # np.load would take anything that isn't a zip file for a pickle, and say so misleadingly.
    try:
        check_regular(path)
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip archive")
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGE as error:
        raise ValueError(
            f"{shown(path)} is not a whole .npz file: {error}; get it again, or save it anew"
        ) from error


def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, in memory. Sizes are checked before memory is allocated.

    Raises:
        ValueError: it isn't a whole .npz file; an array is not there, holds Python objects or is
            larger than memory.
        TypeError: a member of the archive that is no array.
    """
    there = npz_names(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = dict(zip(there, archive.infolist(), strict=True))
            for name in names:
                if name not in members:
                    raise KeyError(name)
                arrays[name] = _read_member(archive, members[name])
    except KeyError as error:
        raise ValueError(
            f"{shown(path)} lacks {error.args[0]}: it holds {', '.join(map(shown, there)) or 'nothing'}"
        ) from None
    except _DAMAGE as error:
        if str(error) == OBJECTS:
            raise ValueError(f"{shown(path)} can't be read: {name}: {error}") from error
        why = "there is not enough memory" if isinstance(error, MemoryError) else error
        raise ValueError(
            f"{shown(path)} is not a whole .npz file: {name}: {why}; get it again, or save it anew"
        ) from error
    except TypeError:
        raise TypeError(
            f"{shown(path)}: {shown(name)} is not an array; write the file with np.savez"
        ) from None
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        if not member.filename.endswith(".npy"):
            raise TypeError
        header = read_header(file)
        check_size(header, member.file_size - header.offset)
        packed = member.compress_size
        if member.compress_type == zipfile.ZIP_DEFLATED and (
            member.file_size > _MOST_DEFLATED * packed + 1024
        ):
            raise ValueError(
                f"its header says {header}, which {packed:,} compressed bytes can't hold"
            )
        check_memory(header.nbytes)
        array = np.empty(header.shape, header.dtype, "F" if header.fortran else "C")
        flat = (
            array.reshape(-1, order="A").view(np.uint8) if header.nbytes else np.empty(0, np.uint8)
        )
        rest = memoryview(flat)
        while len(rest):
            if not (count := cast(Any, file).readinto(rest[: 1 << 24])):
                raise ValueError(f"it is cut short: its header says {header}")
            rest = rest[count:]
        if file.read(1):  # at the end, where the checksum is compared as well
            raise ValueError(f"it is longer than it says: its header says {header}")
        return array
