"""Memory maps of .npy files, from any thread."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

# What NumPy writes for an array of numbers in C order: numpy.lib.format, versions 1 to 3.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][biufc]\d{1,2})', 'fortran_order': False, "
    rb"'shape': \((\d+,(?: \d+,)*(?: \d+)?|)\), \} *\n"
)


def map_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped, read-only.

    NumPy reads a header with Python's parser, which in CPython before 3.11.8 and 3.12.2 fails now
    and then when two threads use it ("SystemError: AST constructor recursion depth mismatch",
    python/cpython#106905). Headers as NumPy writes them are read here without it, and it is left
    to NumPy to read any other or to say what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a whole .npy file, or it holds Python objects.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        if start[:6] == np.lib.format.MAGIC_PREFIX:
            size = int.from_bytes(file.read(2 if start[6:7] == b"\x01" else 4), "little")
            if size <= 10_000 and (found := _HEADER.fullmatch(file.read(size))):
                dtype, shape = np.dtype(found[1].decode()), found[2].decode()
                sizes = tuple(int(n) for n in shape.split(",") if n.strip())
                return np.memmap(path, dtype, "r", file.tell(), sizes)
    return np.lib.format.open_memmap(path, mode="r")
