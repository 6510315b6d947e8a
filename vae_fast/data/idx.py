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

import numpy as np

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one IDX file, gzipped or plain, into an array of native byte order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not IDX, or holds fewer or more bytes than its header says; the
            message names the file and what was found.
    """
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise ValueError(
            f"{path} is not an IDX file: it must begin with two zero bytes, "
            f"and begins with {raw[:4].hex(' ') or 'nothing (it is empty)'}"
        )
    code, ndim = raw[2], raw[3]
    if code not in _TYPES:
        known = ", ".join(f"0x{c:02x}" for c in _TYPES)
        raise ValueError(f"{path}: unknown IDX type code 0x{code:02x}; known codes are {known}")
    header = 4 + 4 * ndim
    if ndim == 0 or len(raw) < header:
        raise ValueError(
            f"{path}: an IDX header of {ndim} dimensions takes {header} bytes, "
            f"and the file holds {len(raw)}"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    dtype = np.dtype(_TYPES[code])
    expected, found = prod(shape) * dtype.itemsize, len(raw) - header
    if found != expected:
        fault = "truncated" if found < expected else "longer than it says"
        raise ValueError(
            f"{path} is {fault}: its header says {'x'.join(map(str, shape))} values of "
            f"{dtype.itemsize} bytes, {expected} bytes in all, and {found} follow"
        )
    values = np.frombuffer(raw, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))  # a copy: writable, and in native byte order


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        start = file.read(2)
        file.seek(0)
        if start != b"\x1f\x8b":
            return file.read()
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                return stream.read()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is a damaged or truncated gzip file ({error}); get it again"
            ) from error
