"""From what a user names or hands over to what the engine eats: `load` and `as_data`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.data.arrays import ArrayData, from_array
from vae_fast.data.catalog import (
    CATALOG,
    EMBEDDED,
    GENERATED,
    NAMES,
    SPLITS,
    Entry,
    canonical,
    default_root,
    suggestion,
)
from vae_fast.data.datasets import DatasetData, from_dataset, in_memory
from vae_fast.data.embedded import read_fashion10k
from vae_fast.data.errors import DataUnavailableError
from vae_fast.data.files import SUFFIXES, read_file
from vae_fast.data.folders import ImageFolder
from vae_fast.data.idx import read_idx
from vae_fast.data.shard_index import INDEX
from vae_fast.data.shards import ShardData, open_shards
from vae_fast.data.sprites import Sprites, split_rows
from vae_fast.data.streams import StreamData, from_stream, stream_in_memory
from vae_fast.data.torchvision_sets import NotHere, read_torchvision

Data = ArrayData | DatasetData | ShardData | Sprites | StreamData


def load(
    source: Any = EMBEDDED,
    *,
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    bounded: bool = True,
    keep_in_memory: bool = False,
) -> Data:
    """Load one split of a data set.

    Names: fashion10k (in the package), fashion-mnist, mnist, kmnist, cifar10, svhn, and sprites
    (generated). Everything that `as_data` takes is a source too.

    Splits: "train", "val", "test", and "train+val", the whole official training set. fashion10k has
    a train and a val split of its own, both from Fashion-MNIST's training set, and no test split.
    The others hold out the last images of their training set: 10,000 of 60,000 (mnist,
    fashion-mnist, kmnist), 5,000 of 50,000 (cifar10), 7,257 of 73,257 (svhn). Of sprites, val and
    test are a twentieth each, drawn at random once for all. Of a custom source, "val" is the last
    tenth, in the order it is given, and "train" all before it.

    Args:
        source: a name, a path, an array, a tensor or a torch Dataset.
        split: which part of it.
        root: the folder that holds a named data set, as torchvision lays it out or, for IDX files,
            lying in it directly. None looks in $VAE_FAST_DATA, or the user's cache, and in the
            system's folders.
        download: let torchvision download a named data set into root. Nothing is downloaded
            otherwise.
        bounded, keep_in_memory: as in `as_data`.

    Raises:
        DataUnavailableError: the named data set is in none of the places where it may be; the
            message lists them all and how to get it.
        ValueError, TypeError: an unknown name or split, or a source that doesn't fit.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, and is {split!r}")
    name = canonical(source) if isinstance(source, str) else None
    if name is None:
        data = as_data(source, bounded=bounded, keep_in_memory=keep_in_memory)
        return _custom_split(data, split)
    if name == EMBEDDED:
        return _embedded(split)
    if name == GENERATED:
        return Sprites(split_rows(split))
    return _named(name, CATALOG[name], split, root, download)


def as_data(
    source: Any,
    *,
    bounded: bool = True,
    keep_in_memory: bool = False,
    samples: int | None = None,
    splits: bool = False,
) -> Data:
    """Turn any source into what the trainer eats, whole.

    Args:
        source: a NumPy array or torch tensor of images (see `from_array` for shapes and dtypes), or
            a tuple (images, labels); a path to an .npy file, which is memory-mapped and not loaded,
            to an .npz file with `images` and perhaps `labels`, to a folder of shards that `pack`
            wrote, or to a folder of image files; any torch Dataset, map-style or iterable, of
            images or (image, label) tuples; a known name, which gives its train split; or data made
            by this function.
        bounded: False lets floating-point values lie outside [0, 1], for likelihoods other than
            Bernoulli's.
        keep_in_memory: read a torch Dataset once, whole, into memory. Much faster to train on; for
            Datasets that fit and whose items don't change from one reading to the next.
        samples, splits: of an IterableDataset, see `StreamData`.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: it isn't one of these, or doesn't fit; the message says why.
    """
    stream = isinstance(source, torch.utils.data.IterableDataset) or (
        hasattr(source, "__iter__")
        and not hasattr(source, "__getitem__")
        and not isinstance(source, (set, frozenset))
    )
    if (samples is not None or splits) and not stream:
        raise TypeError(
            f"samples and splits are of an IterableDataset, and this is a {type(source).__name__}"
        )
    if isinstance(source, Data):
        data = source
    elif isinstance(source, (np.ndarray, torch.Tensor)):
        data = from_array(source, bounded=bounded)
    elif isinstance(source, tuple) and len(source) == 2:
        data = from_array(*source, bounded=bounded)
    elif isinstance(source, (str, os.PathLike)):
        data = _from_path(source, bounded)
    elif stream:
        data = from_stream(source, samples=samples, splits=splits, bounded=bounded)
    elif hasattr(source, "__getitem__") and not isinstance(source, (list, tuple, dict, bytes)):
        data = from_dataset(source, bounded=bounded)
    else:
        raise TypeError(
            "data must be a name, a path, a NumPy array, a torch tensor, a tuple (images, labels) "
            f"or a torch Dataset, and is a {type(source).__name__}"
        )
    if keep_in_memory and isinstance(data, DatasetData):
        data = in_memory(data)
    elif keep_in_memory and isinstance(data, StreamData):
        data = stream_in_memory(data)
    return data


def _from_path(source: str | os.PathLike[str], bounded: bool) -> Data:
    path = Path(source).expanduser()
    if path.suffix in SUFFIXES:
        return read_file(path, bounded=bounded)
    if isinstance(source, str) and canonical(source):
        return load(source)
    if path.name == INDEX:
        return open_shards(path.parent)
    if path.is_dir():
        return open_shards(path) if (path / INDEX).exists() else from_dataset(ImageFolder(path))
    if path.exists():
        raise ValueError(
            f"{path} can't be read as data: an .npy or .npz file is needed, or a folder of shards "
            "or images"
        )
    raise ValueError(
        f"unknown data {str(source)!r}{suggestion(str(source))}: it is neither one of "
        f"{', '.join(NAMES)} nor a path to an .npy or .npz file or a folder"
    )


def _embedded(split: str) -> ArrayData:
    if split == "test":
        raise ValueError(
            f"{EMBEDDED} has no test split; its images are all from Fashion-MNIST's training set, "
            "so test on fashion-mnist's"
        )
    arrays = read_fashion10k()
    parts = split.split("+")
    images = np.concatenate([arrays[f"{part}_images"] for part in parts])
    labels = np.concatenate([arrays[f"{part}_labels"] for part in parts])
    provenance = "in the package; from Fashion-MNIST's training set, (c) 2017 Zalando SE, MIT"
    return from_array(images, labels, name=EMBEDDED, provenance=provenance)


def _named(name: str, entry: Entry, split: str, root: Any, download: bool) -> ArrayData:
    base = Path(root).expanduser() if root is not None else default_root()
    train = split != "test"
    images, labels, provenance = _find(name, entry, train, base, root is not None, download)
    expected = entry.train if train else entry.test
    if len(images) != expected:
        raise ValueError(
            f"{name}: its {'training' if train else 'test'} set has {expected} images, "
            f"and {provenance} holds {len(images)}"
        )
    data = from_array(images, labels, name=name, provenance=provenance)
    cut = entry.train - entry.held_out
    parts = {"train": (0, cut), "val": (cut, entry.train)}
    return data.slice(*parts[split]) if split in parts else data


def _find(
    name: str, entry: Entry, train: bool, base: Path, only_base: bool, download: bool
) -> tuple[Any, Any, str]:
    """Images, labels and where they were found; or DataUnavailableError, saying all that failed."""
    tried = []
    if entry.idx:
        folders = [base / entry.torchvision / "raw"]
        if only_base:
            folders.insert(0, base)
        else:
            folders += map(Path, entry.folders)
        for folder in folders:
            try:
                images, labels = (
                    _read_idx_in(folder, train, kind) for kind in ("images", "labels")
                )
                return images, labels, f"IDX files in {folder}"
            except (OSError, ValueError) as error:
                tried.append(f"IDX files in {folder}: {error}")
    try:
        images, labels = read_torchvision(entry, train=train, root=base, download=download)
        return images, labels, f"torchvision's {entry.torchvision} in {base}"
    except NotHere as error:
        tried.append(str(error))
    remedies = []
    if entry.package:
        remedies.append(f"apt install {entry.package} (Debian and Ubuntu)")
    remedies.append(f"load({name!r}, root=FOLDER), where FOLDER holds it")
    if not download:
        remedies.append(f"load({name!r}, download=True), which lets torchvision download it")
    remedies.append(f"load({EMBEDDED!r}), which is in the package")
    raise DataUnavailableError(name, tried, remedies)


def _read_idx_in(folder: Path, train: bool, kind: str) -> np.ndarray:
    stem = f"{'train' if train else 't10k'}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.is_file():
            return read_idx(path)
    raise FileNotFoundError(
        f"no {stem} there, gzipped or not" if folder.is_dir() else "no such folder"
    )


def _custom_split(data: Data, split: str) -> Data:
    if split == "train+val":
        return data
    if split == "test":
        raise ValueError(f"{data.name} has no test split: load the file that holds its test images")
    if len(data) < 2:
        raise ValueError(f"{data.name} has {len(data)} sample; holding one out takes two at least")
    cut = len(data) - max(1, len(data) // 10)
    if isinstance(data, ArrayData) and data.labels is not None:
        unseen = sorted(set(data.labels[cut:].tolist()) - set(data.labels[:cut].tolist()))
        if unseen:
            warnings.warn(
                f"{data.name}: the last tenth, held out for validation, has the classes {unseen}, "
                "which the rest lacks: is it sorted by class? Shuffle it first",
                stacklevel=3,
            )
    return data.slice(0, cut) if split == "train" else data.slice(cut, len(data))
