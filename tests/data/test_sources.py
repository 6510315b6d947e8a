"""`load` by name: the searched places, the splits, and the message if nothing is found."""

import gzip
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fresh import python
from vae_fast.data import DataUnavailableError, catalog, load

from .test_idx import idx_bytes

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.RandomState(11)
TRAIN = RNG.randint(0, 256, (12, 28, 28), dtype=np.uint8)
TEST = RNG.randint(0, 256, (5, 28, 28), dtype=np.uint8)


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """No test sees this machine's cache."""
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch):
    """A catalogue in which kmnist is small."""
    entry = replace(catalog.CATALOG["kmnist"], train=12, test=5, held_out=3)
    monkeypatch.setitem(catalog.CATALOG, "kmnist", entry)


def write_idx(folder, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, images in (("train", TRAIN), ("t10k", TEST)):
        labels = np.arange(len(images), dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)


@pytest.mark.parametrize("place", ["", "KMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_in_root_are_read_without_torchvision(tmp_path, small, place, zipped):
    write_idx(tmp_path / place, zipped)
    whole = load("kmnist", split="train+val", root=tmp_path)
    np.testing.assert_array_equal(whole.images[:, 0].numpy(), TRAIN)
    assert whole.name == "kmnist" and str(tmp_path) in whole.provenance
    train, val, test = (load("KMNIST", split=s, root=tmp_path) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (9, 3, 5)
    assert torch.equal(torch.cat([train.images, val.images]), whole.images)
    assert val.labels.tolist() == [9, 0, 1]
    np.testing.assert_array_equal(test.images[:, 0].numpy(), TEST)


def test_the_environments_folder_is_searched(tmp_path, small):
    write_idx(tmp_path / "cache" / "KMNIST" / "raw")
    assert len(load("kmnist")) == 9


def test_debians_fashion_mnist_is_found():
    if not DEBIAN.is_dir():
        pytest.skip(f"Fashion-MNIST isn't in {DEBIAN} (apt install dataset-fashion-mnist)")
    test = load("fashion_mnist", split="test")
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert abs(test.images.float().mean().item() - 73.1466) < 1e-3  # measured
    train = load("FashionMNIST", split="train")
    assert train.images.shape == (50_000, 1, 28, 28)
    assert str(DEBIAN) in train.provenance


def test_a_missing_source_lists_what_was_tried_and_the_remedies(tmp_path, no_torchvision):
    with pytest.raises(DataUnavailableError) as caught:
        load("fashion-mnist", root=tmp_path)
    message = str(caught.value)
    for word in [
        "'fashion-mnist' was not found",
        f"IDX files in {tmp_path}: no train-images-idx3-ubyte there",
        f"IDX files in {tmp_path / 'FashionMNIST' / 'raw'}: no such folder",
        'torchvision is not installed: pip install "vae_fast[data]"',
        "apt install dataset-fashion-mnist",
        "root=FOLDER",
        "download=True",
        "fashion10k",
    ]:
        assert word in message
    with pytest.raises(DataUnavailableError) as caught:
        load("mnist", download=True)
    assert "apt install" not in str(caught.value)
    assert "download=True" not in str(caught.value)  # it was tried
    assert str(tmp_path / "cache") in str(caught.value)


def test_a_damaged_file_is_listed_as_tried(tmp_path, small, no_torchvision):
    write_idx(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(TRAIN)[:-1])
    with pytest.raises(DataUnavailableError, match="train-images-idx3-ubyte is truncated"):
        load("kmnist", root=tmp_path)


def test_another_sets_size_is_refused(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(
        ValueError, match="training set has 60000 images, and IDX files .* holds 12"
    ):
        load("mnist", root=tmp_path)


def test_the_error_crosses_process_borders():
    error = DataUnavailableError("x", ["a: no"], ["get it"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_custom_sources_hold_out_their_last_tenth():
    images = np.arange(25 * 16, dtype=np.uint16).astype(np.uint8).reshape(25, 4, 4)
    train, val = load(images, split="train"), load(images, split="val")
    assert (len(train), len(val)) == (23, 2)
    both = torch.cat([train.images, val.images])
    assert torch.equal(both, load(images, split="train+val").images)
    assert len(load(images[:2], split="val")) == len(load(images[:2], split="train")) == 1
    with pytest.raises(ValueError, match="1 sample"):
        load(images[:1], split="val")
    with pytest.raises(ValueError, match="no test split"):
        load(images, split="test")


def test_a_sorted_custom_source_is_warned_about():
    images = np.arange(20 * 16).astype(np.uint8).reshape(20, 4, 4)
    for per_class in (2, 10):  # of the second, the last tenth has a class that the rest has too
        labels = np.arange(20) // per_class
        words = r"classes \[9\].*sorted by class" if per_class == 2 else "not like.*sorted by class"
        with pytest.warns(UserWarning, match=words):
            val = load((images, labels), split="val")
        assert sorted(val.labels.tolist()) == sorted(set(labels.tolist()))
        np.testing.assert_array_equal(val.images[:, 0].numpy(), images[val.rows.numpy()])
        with pytest.warns(UserWarning):
            train = load((images, labels), split="train")
        assert sorted(train.rows.tolist() + val.rows.tolist()) == list(range(20))


def test_a_wrong_split_lists_the_right_ones():
    with pytest.raises(ValueError, match="one of train, val, train.val, test, and is 'valid'"):
        load("fashion10k", split="valid")


def test_importing_and_loading_needs_torch_and_numpy_only():
    code = (
        "import sys, vae_fast.data as d; d.load(split='val');"
        "print([m for m in ('torchvision', 'PIL', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr
