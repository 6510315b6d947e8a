"""Arrays in .npy form. A header is accepted only if the file has as many bytes as it declares."""

from __future__ import annotations

import ast
import math
import os
import re
import stat
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

# What NumPy writes for an array of numbers: numpy.lib.format, versions 1 to 3.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufc]\d{1,2})', 'fortran_order': (False|True), "
    rb"'shape': \((\d+,(?: \d+,)*(?: \d+)?|)\), \} *\n"
)
_LONGEST = 10_000  # bytes of a header; NumPy's own limit
OBJECTS = "it holds Python objects, which would run code when loaded: save an array of numbers"


class Header(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int  # of the values in the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}, {self.nbytes:,} bytes"


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise unless this is a regular file: reading a pipe may block, and a device may have no end.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is a folder, a pipe or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"it is {kind}, not a file")


def read_header(file: IO[bytes]) -> Header:
    """The header of an .npy file, from its beginning.

    NumPy reads a header with Python's parser, which in CPython before 3.11.8 and 3.12.2 sometimes
    fails when two threads use it ("SystemError: AST constructor recursion depth mismatch",
    python/cpython#106905). This reads headers in NumPy's own form without that parser.

    Raises:
        ValueError: the file has no such header, or the array holds Python objects.
    """
    start = file.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX:
        begins = f"begins with {start[:6]!r}" if start else "is empty"
        raise ValueError(f"it {begins}, and must begin with {np.lib.format.MAGIC_PREFIX!r}")
    if start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError(f"its format has version {start[6:].hex('.')}, and 1 to 3 are known")
    width = 2 if start[6] == 1 else 4
    size = int.from_bytes(file.read(width), "little")
    if size > _LONGEST:
        raise ValueError(f"its header says to be {size:,} bytes long, and has {_LONGEST:,} at most")
    text = file.read(size)
    if len(text) < size:
        raise ValueError("it ends within its header")
    if found := _HEADER.fullmatch(text):
        sizes = tuple(int(n) for n in found[3].split(b",") if n.strip())
        name, fortran = found[1].decode(), found[2] == b"True"
        try:
            dtype = np.dtype(name)
        except TypeError:  # as of '|u9'
            raise ValueError(f"its header names the dtype {name!r}, which NumPy has not") from None
    else:
        dtype, sizes, fortran = _parsed(text.decode("latin1" if width == 2 else "utf8"))
    if dtype.hasobject:
        raise ValueError(OBJECTS)
    return Header(dtype, sizes, fortran, 8 + width + size)


def _parsed(text: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    try:
        fields = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text).strip())  # 1L is Python 2's
        dtype = np.lib.format.descr_to_dtype(fields["descr"])
        sizes, fortran = fields["shape"], fields["fortran_order"]
        whole = all(type(n) is int and n >= 0 for n in sizes) and isinstance(sizes, tuple)
    # The parser meets deep nesting with RecursionError or MemoryError.
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"its header can't be read ({type(error).__name__})") from error
    if not whole or type(fortran) is not bool:
        raise ValueError(f"its header says shape {sizes!r} and fortran_order {fortran!r}")
    return dtype, sizes, fortran


def map_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped, read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a whole .npy file, or it holds Python objects.
    """
    check_regular(path)
    with open(path, "rb") as file:
        header = read_header(file)
        found = os.fstat(file.fileno()).st_size - header.offset
    check_size(header, found)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype, order)
    return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def check_size(header: Header, found: int) -> None:
    """Raise ValueError unless the file has as many bytes as the header declares."""
    if found != header.nbytes:
        state = "cut short" if found < header.nbytes else "longer than it says"
        raise ValueError(f"it is {state}: its header says {header}, and {found:,} bytes follow")


def check_memory(nbytes: int) -> None:
    """Raise ValueError if ``nbytes`` exceeds this machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return
    if nbytes > memory:
        raise ValueError(
            f"it takes {nbytes / 1e9:,.1f} GB of memory, and this machine has {memory / 1e9:,.1f}: "
            "save it as .npy, which is not loaded"
        )
