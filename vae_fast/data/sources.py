"""`load` and `as_data`: from a name, a path or an object to data for the engine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vae_fast.data.arrays import ArrayData, check_binary, check_bounded, from_array
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
from vae_fast.data.datasets import DatasetData, from_dataset, in_memory, known_labels
from vae_fast.data.embedded import CLASSES, read_fashion10k
from vae_fast.data.errors import DataUnavailableError
from vae_fast.data.files import SUFFIXES, read_file
from vae_fast.data.folders import ImageFolder
from vae_fast.data.idx import read_idx
from vae_fast.data.images import SUFFIXES as IMAGE_SUFFIXES
from vae_fast.data.message_words import shown
from vae_fast.data.ranges import Range, check_counts, check_unit
from vae_fast.data.shard_index import INDEX
from vae_fast.data.shards import ShardData, open_shards
from vae_fast.data.sparse import from_sparse, is_sparse
from vae_fast.data.sparse_rows import SparseRows
from vae_fast.data.splits import has_label_runs, held_out, held_out_size
from vae_fast.data.sprites import Sprites, split_rows
from vae_fast.data.streams import StreamData, from_stream, stream_in_memory
from vae_fast.data.tables import SUFFIXES as TABLES
from vae_fast.data.tables import from_cells, read_table
from vae_fast.data.torchvision_sets import TorchvisionUnavailable, read_torchvision
from vae_fast.data_options import DataOptions

Data = ArrayData | DatasetData | ShardData | Sprites | StreamData


def load(
    source: Any = EMBEDDED,
    *,
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    bounded: bool = True,
    keep_in_memory: bool = False,
    labels: bool = True,
    options: DataOptions | None = None,
    kept: Sequence[int | str] | None = None,
) -> Data:
    """Load one split of a data set.

    Names: fashion10k (in the package), fashion-mnist, mnist, kmnist, cifar10, svhn, and sprites
    (generated). Everything that `as_data` accepts is a source too.

    Splits: "train", "val", "test", and "train+val", the whole official training set. fashion10k has
    a train and a val split of its own, both from Fashion-MNIST's training set, and no test split.
    The others hold out the last images of their training set: 10,000 of 60,000 (mnist,
    fashion-mnist, kmnist), 5,000 of 50,000 (cifar10), 7,257 of 73,257 (svhn). For sprites, val and
    test are a fixed random twentieth each.

    A tenth of a custom source is held out as "val" (`DataOptions`). For folders of images, torch
    Datasets and arrays that are sorted by class it is drawn by a seed, the same fraction of every
    class. For other arrays and for shards it is the last tenth. A folder of images may have split
    folders, train, val (valid, validation) and test, which are then used.

    Args:
        source: a name, a path, an array, a tensor or a torch Dataset.
        split: the split to load.
        root: the folder that holds a named data set, as torchvision lays it out or, for IDX files,
            lying in it directly. None searches $VAE_FAST_DATA, or the user's cache, and the
            system's folders.
        download: let torchvision download a named data set into root. Nothing is downloaded
            otherwise.
        bounded, keep_in_memory, labels, options: as in `as_data`.
        kept: the samples of a custom source that are "val", as numbers or file names; a resumed run
            passes those of its start.

    Raises:
        DataUnavailableError: the named data set is in none of its possible places; the message
            lists them and says how to get it.
        ValueError, TypeError: an unknown name or split, or a source that doesn't fit.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, and is {split!r}")
    name = canonical(source) if isinstance(source, str) else None
    options = options or DataOptions()
    options.check()
    if name is None:
        how: dict[str, Any] = {"bounded": bounded, "labels": labels, "options": options}
        data = custom_split(as_data(source, **how), split, options, kept)
        return _in_memory(data) if keep_in_memory else data
    _check_options(name, options)
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
    labels: bool = True,
    options: DataOptions | None = None,
) -> Data:
    """Wrap any source, whole, as data for the trainer.

    Args:
        source: a NumPy array or torch tensor of images (see `from_array` for shapes and dtypes), or
            a tuple (images, labels); a sparse matrix of SciPy or torch, or it and labels; an
            AnnData; a path to an .npy file, which is memory-mapped and not loaded, to an .npz file
            with `images` and perhaps `labels`, to a table (.csv, .parquet, .h5ad), to a folder of
            shards that `pack` wrote, to a folder of image files, to one image or to an IDX file;
            any torch Dataset, map-style or iterable, of images or (image, label) tuples; a known
            name, which gives its train split; or data made by this function.
        bounded: False lets floating-point values lie outside [0, 1], for likelihoods other than
            Bernoulli's, and uint8 be 0 and 1, for a likelihood of classes.
        keep_in_memory: read a torch Dataset once, whole, into memory. Training is much faster. Use
            it for Datasets that fit and whose items are always the same.
        samples, splits: of an IterableDataset, see `StreamData`.
        labels: False leaves out the labels of a Dataset's items, which must be integers otherwise.
        options: how image files are read (`DataOptions`).

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: the source is none of these, or does not fit; the message says why.
    """
    stream = isinstance(source, torch.utils.data.IterableDataset) or (
        not is_sparse(source)
        and hasattr(source, "__iter__")
        and not hasattr(source, "__getitem__")
        and not isinstance(source, (set, frozenset))
    )
    if (samples is not None or splits) and not stream:
        raise TypeError(
            f"samples and splits are of an IterableDataset, and this is a {type(source).__name__}"
        )
    options = options or DataOptions()
    options.check()
    if isinstance(source, (str, os.PathLike)):
        data = _from_path(source, bounded, labels, options)
    else:
        _check_options(type(source).__name__, options)
        if isinstance(source, Data):
            data = source
        elif is_sparse(source):
            data = from_sparse(source, bounded=bounded)
        elif type(source).__module__.startswith("anndata"):
            data = from_cells(source, bounded=bounded, labels=labels)
        elif isinstance(source, tuple) and len(source) == 2 and is_sparse(source[0]):
            data = from_sparse(*source, bounded=bounded)
        elif isinstance(source, (np.ndarray, torch.Tensor)):
            data = from_array(source, bounded=bounded)
        elif isinstance(source, tuple) and len(source) == 2:
            data = from_array(*source, bounded=bounded)
        elif stream:
            data = from_stream(
                source, bounded=bounded, labels=labels, samples=samples, splits=splits
            )
        elif hasattr(source, "__getitem__") and not isinstance(source, (list, tuple, dict, bytes)):
            data = from_dataset(source, bounded=bounded, labels=labels)
        else:
            raise TypeError(
                "data must be a name, a path, a NumPy array, a torch tensor, a sparse matrix, a tuple "
                f"(images, labels) or a torch Dataset, and is a {type(source).__name__}"
            )
    return _in_memory(data) if keep_in_memory else data


def in_support(data: Data, *, unit: bool) -> Data:
    """The data, if their values can be modelled: uint8 must not be 0 and 1 alone, and with ``unit``
    floating-point values must be in [0, 1], as a Bernoulli likelihood needs.

    What is read item by item is checked as it is read.

    Raises:
        ValueError: they aren't.
    """
    if isinstance(data, ArrayData):
        check_bounded(data) if unit else check_binary(data)
        return data
    if isinstance(data, ShardData):
        data = data.ranged()
        if unit:
            check_unit(cast(Range, data.range), data.name)
    if isinstance(data, (DatasetData, StreamData)) and unit:
        data = replace(data, bounded=True)
        if isinstance(data, DatasetData):
            data[0]  # most unsuitable data fail here
    if not isinstance(data, Sprites):
        data.check_binary()
    return data


def of_counts(data: Data) -> Data:
    """The data, if their values may be counts, 0, 1, 2, ...; uint8 stand for themselves.

    Data that are read item by item are not checked.

    Raises:
        ValueError: a value is negative or, in data held as one array, a fraction.
    """
    if isinstance(data, ShardData):
        data = data.ranged()
    if isinstance(data, (ArrayData, ShardData)):
        blocks: Iterable[torch.Tensor] = ()
        if isinstance(data, ArrayData) and isinstance(data.images, SparseRows):
            blocks = data.images.values.split(1 << 24)
        elif isinstance(data, ArrayData) and data.images.is_floating_point():
            blocks = data.images.split(max(1, (1 << 24) // data.shape.numel()))
        check_counts(cast(Range, data.range), blocks, data.name)
    return data


def _in_memory(data: Data) -> Data:
    if isinstance(data, DatasetData):
        return in_memory(data)
    return stream_in_memory(data) if isinstance(data, StreamData) else data


def _from_path(
    source: str | os.PathLike[str], bounded: bool, labels: bool, options: DataOptions
) -> Data:
    path = Path(source).expanduser()
    if holds_images(path):
        return _images(path, bounded, labels, options)
    _check_options(str(source), options)
    if path.suffix.lower() in SUFFIXES:
        return read_file(path, bounded=bounded)
    if path.suffix.lower() in TABLES:
        return read_table(path, bounded=bounded, labels=labels)
    if isinstance(source, str) and canonical(source):
        return load(source)
    if path.name == INDEX or path.is_dir():
        return open_shards(path.parent if path.name == INDEX else path)
    if path.is_file() and "-idx" in path.name:
        return _idx_file(path, bounded)
    if path.exists():
        kind = "" if path.is_file() else " is a pipe or a device and"
        raise ValueError(
            f"{shown(path)}{kind} can't be read as data: an .npy, .npz, .csv, .parquet or .h5ad "
            f"file, an image ({' '.join(IMAGE_SUFFIXES)}) or an IDX file is needed, or a folder of shards or images"
        )
    raise ValueError(
        f"unknown data {str(source)!r}{suggestion(str(source))}: it is neither one of "
        f"{', '.join(NAMES)} nor a path to an .npy or .npz file, an image or a folder"
    )


def holds_images(source: str | os.PathLike[str]) -> bool:
    """Whether a path is an image file or a folder of images, to which `DataOptions` apply."""
    path = Path(source).expanduser()
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        return True
    return path.is_dir() and path.suffix.lower() not in SUFFIXES and not (path / INDEX).exists()


def _images(path: Path, bounded: bool, labels: bool, options: DataOptions) -> DatasetData:
    folder = ImageFolder(
        path,
        size=options.size,
        mode=options.mode,
        background=options.background,
        damaged=options.damaged,
    )
    return _image_data(folder, bounded=bounded, labels=labels)


def _image_data(folder: ImageFolder, *, bounded: bool, labels: bool) -> DatasetData:
    data = from_dataset(folder, name=shown(folder.root.name), bounded=bounded, labels=labels)
    where = f"{len(folder)} image files in {shown(folder.root.resolve())}"
    return replace(data, provenance=where)


def _idx_file(path: Path, bounded: bool) -> ArrayData:
    """Images of an IDX file, and labels if the file of labels is beside it."""
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    found = read_idx(labels) if labels != path and labels.is_file() else None
    how: dict[str, Any] = {
        "name": shown(path.name),
        "provenance": shown(path.resolve()),
        "bounded": bounded,
    }
    return from_array(read_idx(path), found, **how)


def _check_options(name: str, options: DataOptions) -> None:
    given = [key for key in ("size", "mode") if getattr(options, key) is not None]
    if given:
        raise ValueError(
            f"data.{given[0]} is for image files, and {shown(name)} is none: leave it out, and "
            "convert the array itself"
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
    data = from_array(images, labels, name=EMBEDDED, provenance=provenance)
    return data.named(CLASSES)


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
    if entry.classes:
        data = data.named(entry.classes)
    cut = entry.train - entry.held_out
    parts = {"train": (0, cut), "val": (cut, entry.train)}
    return data.slice(*parts[split]) if split in parts else data


def _find(
    name: str, entry: Entry, train: bool, base: Path, only_base: bool, download: bool
) -> tuple[Any, Any, str]:
    """Images, labels and the place where they were found; else DataUnavailableError, which lists
    what failed."""
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
    except TorchvisionUnavailable as error:
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


def custom_split(
    data: Data, split: str, options: DataOptions, kept: Sequence[int | str] | None = None
) -> Data:
    """One split of a custom source; see `load`."""
    folder = data.dataset if isinstance(data, DatasetData) else None
    if isinstance(data, DatasetData) and isinstance(folder, ImageFolder) and folder.splits:
        data, whole = _folder_of_split(data, split)
        if whole:
            return data
    if split == "train+val":
        return data
    if split == "test":
        raise ValueError(f"{data.name} has no test split: load the file that holds its test images")
    if len(data) < 2:
        raise ValueError(
            f"{data.name} has {len(data)} sample; holding one out for validation needs at least two"
        )
    if kept is not None:
        val = _held_out_rows(data, kept)
    elif isinstance(data, DatasetData):
        val = held_out(len(data), options.held_out, options.split_seed, known_labels(data))
    else:
        count = len(data)
        cut = count - held_out_size(count, options.held_out)
        if not _sorted_by_class(data, cut, options):
            return data.slice(0, cut) if split == "train" else data.slice(cut, count)
        of_samples = cast(Any, data).labels
        val = held_out(count, options.held_out, options.split_seed, of_samples)
    chosen = cast("ArrayData | DatasetData", data)
    if split == "val":
        return chosen.select(val)
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[val] = False
    return chosen.select(rest.nonzero()[:, 0])


def _folder_of_split(data: DatasetData, split: str) -> tuple[DatasetData, bool]:
    """The folder to read a split from, and whether the folder is that split, from which nothing is
    held out."""
    folder: Any = data.dataset
    folders = folder.splits
    parts = ["train", "val"] if split == "train+val" else [split]
    if split == "val" and "val" not in folders:
        parts = ["train"]
    parts = [part for part in parts if part in folders]
    if not parts:
        raise ValueError(
            f"{data.name} has no folder for {split}: it has {', '.join(folders.values())}"
        )
    found = _image_data(folder.part(*parts), bounded=data.bounded, labels=data.labelled)
    return found, parts == [split] and (split != "train" or "val" in folders)


def _sorted_by_class(data: Data, cut: int, options: DataOptions) -> bool:
    """Whether samples are sorted by class, so that the last ones are not representative, and
    whether they can be drawn at random.

    A warning says so; for data on disk it advises to shuffle them.
    """
    if isinstance(data, ShardData) and data.labelled:
        labels = torch.from_numpy(data.labels_at(0, len(data)))
    elif isinstance(data, ArrayData) and data.labels is not None:
        labels = data.labels.cpu()
    else:
        return False
    unseen = sorted(set(labels[cut:].tolist()) - set(labels[:cut].tolist()))
    if not unseen and not has_label_runs(labels):
        return False
    here = isinstance(data, ArrayData) and not data.mapped
    what = (
        f"has the classes {unseen[:10]}, which the rest lacks" if unseen else "is not like the rest"
    )
    todo = f"a part of every class is held out instead, drawn by seed {options.split_seed}"
    warnings.warn(
        f"{data.name}: the last part, held out for validation, {what}: it is sorted by class; "
        + (todo if here else "shuffle it first (pack does)"),
        stacklevel=5,
    )
    return here


def _held_out_rows(data: Data, kept: Sequence[int | str]) -> torch.Tensor:
    """The numbers of a run's held-out samples."""
    if any(isinstance(name, str) for name in kept):
        numbers = {name: number for number, name in enumerate(data.files or [])}
        if missing := [name for name in kept if name not in numbers]:
            raise ValueError(
                f"{data.name} lacks {len(missing)} of the {len(kept)} samples that this run has held "
                f"out for validation, such as {shown(str(missing[0]))}: put them back, or begin a new "
                "run"
            )
        kept = [numbers[str(name)] for name in kept]
    rows = torch.tensor(sorted(set(kept)), dtype=torch.int64)
    if len(rows) == 0 or int(rows[0]) < 0 or int(rows[-1]) >= len(data) or len(rows) == len(data):
        raise ValueError(
            f"{data.name} has {len(data)} samples, and this run has held out others: the data have "
            "changed since; put them back, or begin a new run"
        )
    return rows
