"""Custom data in .npy and .npz files, and files that contradict their headers."""

import io
import os
import pickle
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, as_data, load

IMAGES = np.random.RandomState(3).randint(0, 256, (20, 6, 5), dtype=np.uint8)


class Bomb:
    """An object whose unpickling is detected."""

    exploded = False

    def __reduce__(self):
        return (_explode, ())


def _explode():
    Bomb.exploded = True


@pytest.fixture(autouse=True)
def nothing_is_unpickled():
    Bomb.exploded = False
    yield
    assert not Bomb.exploded


def test_npy_is_mapped_and_not_loaded(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, IMAGES)
    for source in (path, str(path)):
        data = as_data(source)
        assert data.mapped and data.name == "images.npy"
        assert str(path) in data.provenance and "memory-mapped" in data.provenance
        np.testing.assert_array_equal(data.images[:, 0].numpy(), IMAGES)
    with open(path, "r+b") as file:  # a change on disk shows through the map
        file.seek(-1, 2)
        file.write(bytes([IMAGES[-1, -1, -1] ^ 1]))
    assert data.images[-1, 0, -1, -1] == IMAGES[-1, -1, -1] ^ 1


def test_a_mapped_file_larger_than_memory_opens(tmp_path):
    path = tmp_path / "huge.npy"
    count = 1 << 27  # 512 GiB of 64x64 images, of which the disk holds one page: a sparse file
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (count, 64, 64)}
        )
        start = file.tell()
        try:
            file.truncate(start + count * 4096)
        except OSError as error:
            pytest.skip(f"this file system takes no file of 512 GiB ({error})")
        file.seek(start + (count - 1) * 4096)
        file.write(b"\7" * 4096)
    data = as_data(path)
    assert len(data) == count
    assert data.images[count - 1].unique().tolist() == [7]


def test_mapped_channels_last_and_fortran_order_are_read_rightly(tmp_path):
    rgb = np.random.RandomState(1).randint(0, 256, (9, 8, 7, 3), dtype=np.uint8)
    np.save(tmp_path / "rgb.npy", rgb)
    data = as_data(tmp_path / "rgb.npy")
    assert data.mapped
    np.testing.assert_array_equal(data.images.numpy(), rgb.transpose(0, 3, 1, 2))
    np.save(tmp_path / "f.npy", np.asfortranarray(IMAGES))
    np.testing.assert_array_equal(as_data(tmp_path / "f.npy").images[:, 0].numpy(), IMAGES)


def test_npz_holds_images_and_labels(tmp_path):
    labels = np.arange(20, dtype=np.uint8) % 3
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES, labels=labels, other=np.zeros(2))
    data = as_data(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.images[:, 0].numpy(), IMAGES)
    assert data.labels.tolist() == labels.tolist() and not data.mapped
    np.savez(tmp_path / "b.npz", IMAGES)  # alone in its file, under whatever name
    assert torch.equal(as_data(tmp_path / "b.npz").images, data.images)


def test_a_float_file_is_checked_to_its_end(tmp_path):
    images = np.zeros((50, 64, 64), np.float32)
    images[-1, -1, -1] = np.nan
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(ValueError, match=r"x\.npy.*NaN"):
        as_data(tmp_path / "x.npy")


def _npy(path, array):
    np.save(path, array, allow_pickle=True)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.npy", lambda p: p.write_bytes(b"not numpy at all"), ["not a whole .npy file"]),
        ("b.npy", lambda p: p.write_bytes(b""), ["not a whole .npy file"]),
        ("c.npy", lambda p: (_npy(p, IMAGES), _truncate(p)), ["not a whole .npy file"]),
        ("d.npy", lambda p: _npy(p, np.array([Bomb()])), ["Python objects", "run code"]),
        ("e.npy", lambda p: p.write_bytes(pickle.dumps(Bomb())), ["not a whole .npy file"]),
        ("f.npz", lambda p: p.write_bytes(pickle.dumps(Bomb())), ["not a whole .npz", "zip"]),
        ("g.npz", lambda p: (np.savez(p, IMAGES), _truncate(p)), ["not a whole .npz", "zip"]),
        ("h.npz", lambda p: np.savez(p, np.array([Bomb()])), ["Python objects", "run code"]),
        ("i.npz", lambda p: np.savez(p, x=IMAGES, y=IMAGES), ["holds x, y", "images", "labels"]),
        ("j.npz", lambda p: np.savez(p), ["holds nothing"]),
        ("k.png", lambda p: p.write_bytes(b"\x89PNG"), ["can't be decoded", "none of PNG, JPEG"]),
    ],
)
def test_a_file_that_contradicts_its_header(tmp_path, name, make, words):
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError) as caught:
        as_data(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_zip_member_that_is_no_array(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.txt", "hello")
    with pytest.raises(TypeError, match=r"a\.npz: images\.txt is not an array; .*np\.savez"):
        as_data(tmp_path / "a.npz")


def test_missing_files_folders_and_unknown_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npy does not exist"):
        as_data(tmp_path / "none.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder"):
        as_data(tmp_path / "folder.npy")
    with pytest.raises(
        FileNotFoundError, match=r"neither shards \(an index.json\) nor image files"
    ):
        as_data(tmp_path)
    with pytest.raises(ValueError, match=r"unknown data 'fashon10k' \(did you mean fashion10k\?\)"):
        as_data("fashon10k")
    with pytest.raises(ValueError, match="unknown data 'x/y'.*neither one of fashion10k, mnist"):
        load("x/y")


def _header(shape, descr="|u1"):
    contents = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(contents, fields)
    return contents.getvalue()


def _zip(path, contents, packing=zipfile.ZIP_DEFLATED, size=None, **fields):
    """An archive with images.npy and a wrong directory."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("images.npy", contents)
    raw = bytearray(path.read_bytes())
    central, local = raw.rfind(b"PK\1\2"), raw.find(b"PK\3\4")
    if size is not None:
        struct.pack_into("<I", raw, central + 24, size)
        struct.pack_into("<I", raw, local + 22, size)
    if fields.get("encrypted"):
        raw[central + 8] |= 1
        raw[local + 6] |= 1
    if "method" in fields:
        raw[central + 10] = fields["method"]
    if "flip" in fields:
        raw[fields["flip"]] ^= 255
    path.write_bytes(raw)


HUGE = _header((4_000_000_000 - 128,))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda p: _zip(p, _header((10**12,)) + b"\0" * 100),
            "1,000,000,000,000 bytes, and 100 by",
        ),
        (lambda p: _zip(p, HUGE + b"\0" * 99, size=4_000_000_000 - 128 + len(HUGE)), "can't hold"),
        (
            lambda p: _zip(p, _header((10, 10)) + b"\1" * 9999, size=100 + len(_header((10, 10)))),
            "",
        ),
        (lambda p: _zip(p, _header((10, 10)) + b"\1" * 100, encrypted=True), "encrypted"),
        (lambda p: _zip(p, _header((10, 10)) + b"\1" * 100, method=97), "not supported"),
        (lambda p: _zip(p, _header((10, 10)) + b"\1" * 100, zipfile.ZIP_STORED, flip=210), "CRC"),
        (lambda p: _zip(p, _header((10, 10)) + b"\1" * 100, zipfile.ZIP_BZIP2, flip=90), ""),
        (lambda p: _zip(p, _header((10, 10)) + b"\1" * 100, zipfile.ZIP_LZMA, flip=90), ""),
        (lambda p: _zip(p, _header((10**30, 0, 3))), "dimension exceeded"),
        (lambda p: np.savez(p, images=IMAGES, mask=IMAGES > 3), "a mask can't be used"),
        (
            lambda p: np.savez(p, images=IMAGES, labels=np.array(["a"] * 20, object)),
            "labels.*objects",
        ),
        (
            lambda p: np.savez(p, images=IMAGES, labels=[7] * 20, classes=["a"]),
            "1 names of classes",
        ),
        (os.mkfifo, "a pipe or a device"),
    ],
)
def test_archives_that_lie_are_refused_at_once(tmp_path, make, words):
    path = tmp_path / "a.npz"
    make(path)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=rf"a\.npz.*{words}"):
        as_data(path)
    assert time.perf_counter() - began < 1


def test_names_are_kept_and_unused_arrays_are_reported(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    labels = np.arange(20) % 2
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels, classes=["x", "y"], files=names)
    data = as_data(tmp_path / "a.npz")
    assert data.classes == ("x", "y") and data.files == names
    assert data.slice(3, 5).files == names[3:5]
    np.savez(tmp_path / "b.npz", images=IMAGES, targets=labels)
    with pytest.warns(
        UserWarning, match="b.npz: targets not used; images, labels, classes and fil"
    ):
        assert not as_data(tmp_path / "b.npz").labelled


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a-idx3-ubyte", "a", "shards/index.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / name)
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"{path.name}.*a pipe or a device"):
        as_data(path.parent if name.startswith("shards") else path)


def test_a_mapped_file_that_changes_while_it_is_read_is_reported(tmp_path):
    """A file cut within a page would read as zeros; one cut before the page would end the
    process."""
    images = np.random.default_rng(0).integers(1, 256, (64, 8, 8), dtype=np.uint8)
    path, moved = tmp_path / "images.npy", tmp_path / "moved.npy"
    np.save(path, images)
    data = load(path, split="train+val")
    path.rename(
        moved
    )  # a file that is replaced is no matter: the map is of the one that was opened
    np.save(path, images[:3])
    rows = torch.arange(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(data.gather(rows)[0][:, 0], torch.from_numpy(images))
    moved.rename(path)

    with open(path, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(1, 1))  # a clock that has moved, however coarse it is
    with pytest.warns(UserWarning, match="images.npy was written to while it is read"):
        assert int(data.gather(rows)[0][-1].max()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        data.gather(rows)
    os.truncate(path, path.stat().st_size - 100)
    for part in (data, data.slice(0, 50)):
        with pytest.raises(OSError, match="was cut from 4,224 to 4,124 bytes while it was read"):
            list(Batches(part, 8, shuffle=False))
