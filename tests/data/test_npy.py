"""Memory maps of .npy files: what NumPy reads, without Python's parser where threads would use it."""

import ast

import numpy as np
import numpy.ma  # NumPy imports it where it is used first, with the parser
import pytest

from vae_fast.data import Batches, open_shards, pack
from vae_fast.data.npy import map_npy

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.arange(5),
    np.array(7.5),
    np.array([True, False]),
    np.arange(6, dtype=">i2").reshape(1, 6),
    np.arange(6, dtype=np.float16).reshape(6, 1),
    np.array([1 + 2j]),
    np.ones((1,) * 20, np.float64),
]


@pytest.fixture
def no_parser(monkeypatch):
    def parse(*args, **kwargs):
        raise AssertionError("Python's parser was called, and threads can't share 3.11's")

    monkeypatch.setattr(ast, "literal_eval", parse)  # what NumPy calls


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}-{a.ndim}")
def test_numpys_own_files_are_mapped_without_the_parser(array, version, tmp_path, no_parser):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    found = map_npy(tmp_path / "a.npy")
    assert isinstance(found, np.memmap) and not found.flags.writeable
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "array", [np.asfortranarray(ARRAYS[0]), np.array([(1, 2.0)], dtype="i4,f8"), np.array(["ab"])]
)
def test_other_headers_are_left_to_numpy(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    found = map_npy(tmp_path / "a.npy")
    assert found.dtype == array.dtype and found.flags.f_contiguous == array.flags.f_contiguous
    np.testing.assert_array_equal(found, array)


def _header(contents, text):
    """The file with another header."""
    return contents[:8] + len(text).to_bytes(2, "little") + text + contents[-24:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda b: b[:-1],
            r"cut short: its header says uint8 of shape \(2, 3, 4\), 24 bytes, and 23 bytes",
        ),
        (lambda b: b[:40], "ends within its header"),
        (lambda b: b"", "it is empty"),
        (lambda b: b"PK" + b[2:], "begins with b'PKUMPY'"),
        (lambda b: b.replace(b"(2, 3, 4)", b"(2, 3 4) "), "header can't be read"),
        (lambda b: b.replace(b"'|u1'", b"'|O1'"), "header can't be read"),
        (lambda b: b.replace(b"'|u1'", b"'|u9'"), r"names the dtype '\|u9', which NumPy has not"),
        (lambda b: b + b"more", "longer than it says"),
        (lambda b: b[:8] + b"\xff\xff" + b[10:], "header says to be 65,535 bytes"),
        (lambda b: b[:6] + b"\x07" + b[7:], "version 07.00"),
        (lambda b: _header(b, b"(" * 9_000), "header can't be read"),
        (lambda b: _header(b, b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4)}"), "-1"),
        (
            lambda b: _header(
                b, b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,)}" % 10**30
            ),
            "cut short",
        ),
        (
            lambda b: _header(b, b"{'descr': '|O', 'fortran_order': False, 'shape': (24,)}"),
            "Python objects",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change, words, tmp_path):
    np.save(tmp_path / "a.npy", ARRAYS[0])
    contents = change((tmp_path / "a.npy").read_bytes())
    (tmp_path / "a.npy").write_bytes(contents)
    with pytest.raises(ValueError, match=words):
        map_npy(tmp_path / "a.npy")


def test_numpy_would_have_called_it(tmp_path, no_parser):
    np.save(tmp_path / "a.npy", ARRAYS[0])
    with pytest.raises(AssertionError, match="parser was called"):
        np.lib.format.open_memmap(tmp_path / "a.npy", mode="r")


def test_shards_are_written_and_read_without_the_parser(tmp_path, no_parser):
    pack((ARRAYS[0].reshape(6, 1, 2, 2), np.arange(6)), tmp_path, shard_bytes=24, workers=1)
    batches = Batches(open_shards(tmp_path), 3, shuffle=True)
    labels = [label for _, labels in batches for label in labels.tolist()]
    assert sorted(labels) == list(range(6))
