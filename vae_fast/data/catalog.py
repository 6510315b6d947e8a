"""The data sets known by name, and where their files are looked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from vae_fast.data.embedded import CLASSES

SPLITS = ("train", "val", "train+val", "test")


@dataclass(frozen=True)
class Entry:
    """One named data set.

    Attributes:
        torchvision: the class in torchvision.datasets.
        train: how many images the official training set has.
        test: how many the official test set has.
        held_out: how many of the training set, its last ones, are the validation split.
        idx: whether its files are IDX, which are read without torchvision.
        folders: folders of the system that may hold the files.
        package: the system package that contains them.
        classes: the names of labels 0, 1, ...; empty if the classes are numbers.
    """

    torchvision: str
    train: int
    test: int
    held_out: int
    idx: bool = True
    folders: tuple[str, ...] = ()
    package: str | None = None
    classes: tuple[str, ...] = ()


CATALOG = {
    "mnist": Entry("MNIST", 60_000, 10_000, 10_000),
    "fashion-mnist": Entry(
        "FashionMNIST", 60_000, 10_000, 10_000,
        folders=("/usr/share/datasets/fashion-mnist",), package="dataset-fashion-mnist",
        classes=CLASSES,
    ),
    "kmnist": Entry("KMNIST", 60_000, 10_000, 10_000),
    "cifar10": Entry(
        "CIFAR10", 50_000, 10_000, 5_000, idx=False,
        classes=("airplane", "automobile", "bird", "cat", "deer",
                 "dog", "frog", "horse", "ship", "truck"),
    ),
    "svhn": Entry("SVHN", 73_257, 26_032, 7_257, idx=False),
}  # fmt: skip
EMBEDDED = "fashion10k"
GENERATED = "sprites"
NAMES = (EMBEDDED, *CATALOG, GENERATED)


def canonical(name: str) -> str | None:
    """The catalogue's name for any spelling of it (FashionMNIST, fashion_mnist), or None."""
    plain = {known.replace("-", ""): known for known in NAMES}
    return plain.get(name.lower().replace("-", "").replace("_", ""))


def suggestion(name: str) -> str:
    """' (did you mean ...?)' if a known name is close, else nothing."""
    close = get_close_matches(name.lower(), NAMES, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def default_root() -> Path:
    """The folder of downloads: $VAE_FAST_DATA, or else vae_fast/data in the user's cache."""
    if root := os.environ.get("VAE_FAST_DATA"):
        return Path(root)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vae_fast" / "data"
