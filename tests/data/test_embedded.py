"""fashion10k matches its description."""

import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vae_fast.data import load, read_idx
from vae_fast.data.embedded import CLASSES, FASHION10K, SHA256, checksum, read_fashion10k

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_fashion10k.py"


@pytest.fixture(scope="module")
def arrays():
    return read_fashion10k()


def test_sizes_types_and_class_balance(arrays):
    assert arrays["train_images"].shape == (10_000, 28, 28)
    assert arrays["val_images"].shape == (2_000, 28, 28)
    assert arrays["train_images"].dtype == arrays["val_images"].dtype == np.uint8
    assert np.bincount(arrays["train_labels"]).tolist() == [1000] * 10
    assert np.bincount(arrays["val_labels"]).tolist() == [200] * 10
    assert len(CLASSES) == 10
    assert FASHION10K.stat().st_size < 6_000_000


def test_values_are_those_measured_when_it_was_made(arrays):
    assert int(arrays["train_images"].sum(dtype=np.int64)) == 572921680
    assert int(arrays["val_images"].sum(dtype=np.int64)) == 115044790
    assert arrays["train_labels"][:10].tolist() == [0, 7, 2, 5, 7, 9, 5, 3, 3, 8]
    # One row across the middle of the first image.
    assert arrays["train_images"][0, 14].tolist() == [
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        249,
        216,
        217,
        219,
        222,
        217,
        214,
        210,
        215,
        211,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]


def test_training_and_validation_images_are_disjoint(arrays):
    train, val = arrays["train_source_index"], arrays["val_source_index"]
    assert len(np.unique(np.concatenate([train, val]))) == 12_000
    held = {image.tobytes() for image in arrays["val_images"]}
    seen = {image.tobytes() for image in arrays["train_images"]}
    assert len(held & seen) == 0  # equal images that Fashion-MNIST itself has twice


def test_every_image_is_fashion_mnists_own(arrays):
    if not DEBIAN.is_dir():
        pytest.skip(f"Fashion-MNIST isn't in {DEBIAN} (apt install dataset-fashion-mnist)")
    images = read_idx(DEBIAN / "train-images-idx3-ubyte.gz")
    labels = read_idx(DEBIAN / "train-labels-idx1-ubyte.gz")
    for part in ("train", "val"):
        rows = arrays[f"{part}_source_index"]
        np.testing.assert_array_equal(arrays[f"{part}_images"], images[rows])
        np.testing.assert_array_equal(arrays[f"{part}_labels"], labels[rows])
    if SCRIPT.is_file():  # the script still draws the same images
        spec = importlib.util.spec_from_file_location("make_fashion10k", SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        train, val = script.choose(labels)
        np.testing.assert_array_equal(train, arrays["train_source_index"])
        np.testing.assert_array_equal(val, arrays["val_source_index"])


def test_load_gives_its_splits_as_tensors(arrays):
    train, val, both = (load(split=s) for s in ("train", "val", "train+val"))
    assert (train.images.shape, val.images.shape) == ((10_000, 1, 28, 28), (2_000, 1, 28, 28))
    np.testing.assert_array_equal(val.images[:, 0].numpy(), arrays["val_images"])
    assert train.labels.dtype.is_signed and train.labels.bincount().tolist() == [1000] * 10
    assert (both.images[10_000:] == val.images).all() and len(both) == 12_000
    assert "MIT" in train.provenance
    with pytest.raises(ValueError, match="no test split.*fashion-mnist"):
        load("fashion10k", split="test")


def test_the_notice_travels_with_it():
    notice = FASHION10K.with_name("fashion10k.LICENSE.txt").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "Permission is hereby granted, free of charge" in notice


def test_a_changed_pixel_is_noticed(arrays, tmp_path):
    assert checksum(arrays) == SHA256
    changed = {name: array.copy() for name, array in arrays.items()}
    changed["val_images"][7, 3, 3] ^= 1
    path = tmp_path / "fashion10k.npz"
    np.savez(path, **changed)
    with pytest.raises(ValueError, match="damaged.*SHA-256.*was expected"):
        read_fashion10k(path)


@pytest.mark.parametrize("fault", ["truncated", "flipped", "lacks an array", "pickle"])
def test_a_damaged_file_is_named(tmp_path, fault):
    path = tmp_path / "fashion10k.npz"
    whole = FASHION10K.read_bytes()
    if fault == "truncated":
        path.write_bytes(whole[:1_000_000])
    elif fault == "flipped":
        path.write_bytes(whole[:500_000] + bytes([whole[500_000] ^ 0xFF]) + whole[500_001:])
    elif fault == "lacks an array":
        np.savez(path, train_images=np.zeros((1, 28, 28), np.uint8))
    else:
        buffer = io.BytesIO()
        np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train_images.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="damaged.*install vae-fast again") as caught:
        read_fashion10k(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="make_fashion10k.py"):
        read_fashion10k(tmp_path / "fashion10k.npz")
