"""Read the .npz of ``vae-fast compress`` as an untrusted file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from vae_fast.files import check_regular

MOST_BYTES = 1 << 30  # the size limit of an array, 26 million samples of 20 latent dimensions
FIELDS = ("symbols", "step", "labels")


class CompressedFile(NamedTuple):
    """NumPy arrays: symbols, integers (N, latent_dim); labels, integers (N,), or None."""

    symbols: Any
    step: float
    labels: Any


def read_compressed(path: Path, latent_dim: int) -> CompressedFile:
    """Read the file. ValueError names the file, the field and the expected content.

    Sizes are checked before unpacking, because a small file can declare any size.
    """
    check_regular(path)
    again = "write it anew with vae-fast compress"
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: _array(archive, name) for name in FIELDS if _has(archive, name)}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is not an .npz file, or it is damaged ({error}): {again}"
        ) from None
    except _WrongField as error:
        raise ValueError(f"{path}: {error}; {again}") from None
    if lacks := [name for name in ("symbols", "step") if name not in found]:
        raise ValueError(f"{path} was not written by vae-fast compress: it has no {lacks[0]}")
    symbols: Any
    step: Any
    labels: Any
    symbols, step, labels = (found.get(name) for name in FIELDS)
    if symbols.dtype.kind != "i" or symbols.ndim != 2 or len(symbols) == 0:
        raise ValueError(
            f"{path}: symbols must be integers (N, latent_dim), and are {symbols.dtype} of shape "
            f"{symbols.shape}; {again}"
        )
    if symbols.shape[1] != latent_dim:
        raise ValueError(
            f"{path} has symbols of shape {symbols.shape}, and the model's latent_dim is "
            f"{latent_dim}: it was compressed with another model; give that model's run"
        )
    if step.dtype.kind not in "fiu" or step.shape != () or not 0.0 < step < float("inf"):
        raise ValueError(
            f"{path}: step must be one number above 0, and is {step.dtype} of shape {step.shape}"
            f"{f', {step}' if step.shape == () else ''}; {again}"
        )
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != symbols.shape[:1]):
        raise ValueError(
            f"{path}: labels must be integers of shape ({len(symbols)},), one for each row of "
            f"symbols, and are {labels.dtype} of shape {labels.shape}; {again}"
        )
    return CompressedFile(symbols, float(step), labels)


class _WrongField(Exception):
    pass


def _has(archive: zipfile.ZipFile, name: str) -> bool:
    return f"{name}.npy" in archive.namelist()


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """An array of the archive, if its header matches its size."""
    import numpy as np

    size = archive.getinfo(f"{name}.npy").file_size
    if size > MOST_BYTES:
        raise _WrongField(
            f"{name} claims to have {size:,} bytes, and at most {MOST_BYTES:,} are read"
        )
    with archive.open(f"{name}.npy") as file:
        data = file.read()
    if len(data) != size:
        raise _WrongField(f"{name} has {len(data):,} bytes in place of {size:,}")
    try:
        array = _parsed(data, np)
    except (ValueError, TypeError, OverflowError, SyntaxError, MemoryError) as error:
        raise _WrongField(
            f"{name} is not an array of numbers ({' '.join(str(error).split())})"
        ) from None
    return array.astype(array.dtype.newbyteorder("="))


def _parsed(data: bytes, np: Any) -> Any:
    import io

    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f".npy version {version}")
    shape, fortran, dtype = read[version](file)
    if dtype.hasobject or dtype.names:
        raise ValueError(f"dtype {dtype}")
    count = 1
    for side in shape:
        count *= side
    rest = len(data) - file.tell()
    if any(side < 0 for side in shape) or count * dtype.itemsize != rest:
        raise ValueError(f"shape {shape} of {dtype} for {rest:,} bytes")
    array = np.frombuffer(data, dtype, count, file.tell())
    return array.reshape(shape, order="F" if fortran else "C")
