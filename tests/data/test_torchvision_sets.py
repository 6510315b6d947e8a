"""Named sets from torchvision: the data, and messages of failures."""

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vae_fast.data import DataUnavailableError, catalog, load

from .test_idx import idx_bytes

RNG = np.random.RandomState(2)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_FAST_DATA", str(tmp_path / "cache"))
    for name in ("mnist", "cifar10", "svhn"):
        entry = replace(catalog.CATALOG[name], train=10, test=4, held_out=2)
        monkeypatch.setitem(catalog.CATALOG, name, entry)


def test_mnist_cifar10_and_svhn_as_torchvision_holds_them(fake_torchvision, tmp_path):
    calls = []
    grey = torch.from_numpy(RNG.randint(0, 256, (10, 28, 28), dtype=np.uint8))
    last = RNG.randint(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    first = RNG.randint(0, 256, (4, 3, 32, 32), dtype=np.uint8)

    class Fake:
        def __init__(self, root, download=False, **part):
            calls.append((type(self).__name__, root, download, part))
            self.__dict__.update(self.contents)

    def make(name, **contents):
        setattr(fake_torchvision, name, type(name, (Fake,), {"contents": contents}))

    make("MNIST", data=grey, targets=torch.arange(10))
    make("CIFAR10", data=last, targets=list(range(10)))
    make("SVHN", data=first, labels=np.arange(4))

    data = load("mnist", split="val", root=tmp_path)
    assert torch.equal(data.images[:, 0], grey[8:]) and data.labels.tolist() == [8, 9]
    data = load("cifar10", split="train", root=tmp_path)
    assert data.shape == (3, 32, 32) and data.labels.tolist() == list(range(8))
    np.testing.assert_array_equal(data.images.numpy(), last.transpose(0, 3, 1, 2)[:8])
    data = load("svhn", split="test", root=tmp_path, download=True)
    np.testing.assert_array_equal(data.images.numpy(), first)
    assert calls == [
        ("MNIST", str(tmp_path), False, {"train": True}),
        ("CIFAR10", str(tmp_path), False, {"train": True}),
        ("SVHN", str(tmp_path), True, {"split": "test"}),
    ]


def test_failures_are_one_line_each(fake_torchvision, tmp_path):
    def failing(error):
        def make(*args, **kwargs):
            raise error

        return make

    fake_torchvision.SVHN = failing(RuntimeError("Dataset not found or corrupted.\nMore"))
    with pytest.raises(
        DataUnavailableError, match=r"SVHN in .*: Dataset not found or corrupted\.\n"
    ):
        load("svhn", root=tmp_path)
    fake_torchvision.SVHN = failing(ModuleNotFoundError("No module named 'scipy'", name="scipy.io"))
    with pytest.raises(DataUnavailableError, match="it needs scipy too: pip install scipy"):
        load("svhn", root=tmp_path)
    fake_torchvision.CIFAR10 = failing(RuntimeError("Error downloading x:\nno route to host"))
    with pytest.raises(
        DataUnavailableError, match="the download failed: Error downloading x: no route to host"
    ):
        load("cifar10", root=tmp_path, download=True)
    fake_torchvision.CIFAR10 = failing(EOFError())
    with pytest.raises(DataUnavailableError, match="CIFAR10 in .*: EOFError"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist\nlong trace"),
        ImportError("undefined symbol: _ZN3c10"),
        OSError("libcudart.so.13: cannot open shared object file"),
    ],
)
def test_a_torchvision_that_does_not_import_is_one_sentence(monkeypatch, no_torchvision, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DataUnavailableError) as caught:
        load("cifar10")
    expected = (
        f"torchvision is installed and does not import beside torch {torch.__version__} "
        f"({str(error).splitlines()[0]}): install the torchvision that was made for this torch\n"
    )
    assert expected in str(caught.value)


def _torchvision_datasets():
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchvision does not import here: {type(error).__name__}")
    return datasets


def test_real_torchvision_without_the_data(tmp_path):
    _torchvision_datasets()
    for name in ("mnist", "cifar10", "svhn"):
        with pytest.raises(DataUnavailableError, match="not found"):
            load(name, root=tmp_path)


def test_real_torchvision_reads_what_it_finds(tmp_path, monkeypatch):
    datasets = _torchvision_datasets()
    images = RNG.randint(0, 256, (10, 28, 28), dtype=np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(10, dtype=np.uint8)))
    entry = replace(catalog.CATALOG["mnist"], idx=False)  # so that torchvision reads them
    monkeypatch.setitem(catalog.CATALOG, "mnist", entry)
    data = load("mnist", split="train+val", root=tmp_path)
    np.testing.assert_array_equal(data.images[:, 0].numpy(), images)
    assert data.provenance.startswith("torchvision's MNIST")

    pixels = RNG.randint(0, 256, (10, 3072), dtype=np.uint8)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": pixels, "labels": list(range(10))})
    (folder / "data_batch_1").write_bytes(batch)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # Without the right checksums torchvision doesn't unpickle, and says so.
    with pytest.raises(DataUnavailableError, match="corrupted"):
        load("cifar10", root=tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", ""]])
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    data = load("cifar10", split="train+val", root=tmp_path)
    np.testing.assert_array_equal(data.images.numpy(), pixels.reshape(10, 3, 32, 32))
