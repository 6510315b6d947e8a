"""The IDX reader on handmade files: its results and its error messages."""

import gzip
import struct
import time

import numpy as np
import pytest

from vae_fast.data import read_idx


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + big_endian.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_reads_plain_and_gzipped_files_of_any_name(tmp_path):
    plain, packed = tmp_path / "plain.gz", tmp_path / "packed"  # names that lie
    plain.write_bytes(idx_bytes(IMAGES))
    packed.write_bytes(gzip.compress(idx_bytes(IMAGES), mtime=0))
    for path in (plain, packed):
        found = read_idx(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES)
        found[0, 0, 0] = 9  # writable


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("i1", 0x09), ("i2", 0x0B), ("i4", 0x0C), ("f4", 0x0D), ("f8", 0x0E)],
)
def test_reads_every_type_into_native_byte_order(tmp_path, dtype, code):
    values = np.array([[-3, 0, 100], [7, -128, 1]], dtype=dtype)
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(values, code))
    found = read_idx(path)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", ["is not an IDX file", "it is empty"]),
        (b"\x89PNG\r\n\x1a\n", ["is not an IDX file", "89 50 4e 47"]),
        (b"\0\0\x07\x01\0\0\0\x01\0", ["unknown IDX type code 0x07", "0x08"]),
        (b"\0\0\x08\x03\0\0\0\x01", ["header of 3 dimensions takes 16 bytes", "holds 8"]),
        (b"\0\0\x08\0", ["header of 0 dimensions"]),
        (idx_bytes(IMAGES)[:-5], ["is truncated", "2x3x4", "24 bytes in all", "19 follow"]),
        (idx_bytes(IMAGES) + b"xy", ["is longer than it says", "24 bytes in all", "26 follow"]),
        (gzip.compress(idx_bytes(IMAGES), mtime=0)[:-12], ["damaged or truncated gzip"]),
        (
            gzip.compress(idx_bytes(IMAGES), mtime=0)[:-4] + b"\0\0\0\x01",
            ["damaged or truncated gzip"],
        ),
        (gzip.compress(b"hello", mtime=0), ["is not an IDX file", "68 65 6c 6c"]),
    ],
)
def test_names_the_fault_of_a_file(tmp_path, contents, words):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(contents)
    with pytest.raises(ValueError) as caught:
        read_idx(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize("zipped", [False, True])
def test_impossible_sizes_are_refused_at_once(tmp_path, zipped):
    path = tmp_path / "x-idx3-ubyte"
    for shape, words in (((2**32 - 1,) * 3, "is truncated"), ((1,) * 255, "255 dimensions")):
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        path.write_bytes(gzip.compress(head, mtime=0) if zipped else head)
        began = time.perf_counter()
        with pytest.raises(ValueError, match=words):
            read_idx(path)
        assert time.perf_counter() - began < 1
    bomb = bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + bytes(50_000_000)
    path.write_bytes(gzip.compress(bomb, 1, mtime=0) if zipped else bomb)
    with pytest.raises(ValueError, match="longer than it says"):
        read_idx(path)
