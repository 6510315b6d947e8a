"""Reader of IDX files, the format of MNIST and its descendants.

A file is: two zero bytes, a type code, the number of dimensions; each dimension as a big-endian
uint32; then the values, big-endian, last dimension fastest. Files are read whether gzipped or not,
told apart by their first bytes and not by their names.
Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from math import prod
from typing import IO, cast

import numpy as np

from vae_fast.data.message_words import shown
from vae_fast.data.npy import check_memory, check_regular

_MOST_DEFLATED = 1032  # bytes that one byte of deflate can stand for
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one IDX file, gzipped or plain, into an array of native byte order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not IDX, or holds fewer or more bytes than its header says; the
            message names the file and what was found.
    """
    name = shown(path)
    try:
        check_regular(path)
    except ValueError as error:
        raise ValueError(f"{name} can't be read: {error}") from None
    with open(path, "rb") as file:
        packed = os.fstat(file.fileno()).st_size
        if zipped := file.read(2) == b"\x1f\x8b":
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as stream:
                try:
                    return _read(cast("IO[bytes]", stream), name, _MOST_DEFLATED * packed, zipped)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    raise ValueError(
                        f"{name} is a damaged or truncated gzip file ({error}); get it again"
                    ) from error
        file.seek(0)
        return _read(file, name, packed, zipped)


def _read(file: IO[bytes], name: str, most: int, zipped: bool) -> np.ndarray:
    """The array of a stream that can't hold more than ``most`` bytes."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(
            f"{name} is not an IDX file: it must begin with two zero bytes, "
            f"and begins with {start.hex(' ') or 'nothing (it is empty)'}"
        )
    code, ndim = start[2], start[3]
    if code not in _TYPES:
        known = ", ".join(f"0x{c:02x}" for c in _TYPES)
        raise ValueError(f"{name}: unknown IDX type code 0x{code:02x}; known codes are {known}")
    sizes, header = file.read(4 * ndim), 4 + 4 * ndim
    if ndim > 32:
        raise ValueError(f"{name}: its header says {ndim} dimensions, and 32 are the most")
    if ndim == 0 or len(sizes) < 4 * ndim:
        raise ValueError(
            f"{name}: an IDX header of {ndim} dimensions takes {header} bytes, "
            f"and the file holds {4 + len(sizes)}"
        )
    shape = struct.unpack(f">{ndim}I", sizes)
    dtype = np.dtype(_TYPES[code])
    expected = prod(shape) * dtype.itemsize
    try:
        if expected <= most:
            check_memory(expected)
    except ValueError as error:
        raise ValueError(f"{name} can't be read: {error}") from None
    raw = file.read(expected + 1) if expected <= most else b""
    found = len(raw) if zipped and expected <= most else most - header
    if found != expected:
        fault = "longer than it says" if found > expected else "truncated"
        follow = "can follow at most" if zipped and expected > most else "follow"
        raise ValueError(
            f"{name} is {fault}: its header says {'x'.join(map(str, shape))} values of "
            f"{dtype.itemsize} bytes, {expected} bytes in all, and {found} {follow}"
        )
    values = np.frombuffer(raw, dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="))  # a copy: writable, and in native byte order
