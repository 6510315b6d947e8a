"""Any map-style torch Dataset as a source. Items are converted to images when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from vae_fast.data.arrays import FLOATS, ArrayData, as_tensor, is_channels_last
from vae_fast.data.images import flat
from vae_fast.data.ranges import UNIT, LabelRange, Range, check_not_binary, check_unit, range_of


@dataclass(frozen=True)
class DatasetData:
    """A torch Dataset, read item by item, by worker processes if asked for.

    Items are images, tuples of which the first is the image and the second the label, or mappings
    with the keys image and, perhaps, label (as those of HF datasets). An image is a torch tensor
    (C, H, W), (H, W) or (D,), a NumPy array of those shapes or (H, W, C), or a PIL image. All have
    one shape and dtype.

    RGBA images keep their four channels. Other transparent PIL images are put over white.

    Attributes:
        dataset: the Dataset.
        shape: the shape of one image: (C, H, W), or (D,).
        dtype: uint8, bool or floating point.
        labelled: whether items have labels, which are whole numbers.
        bounded: whether floating-point images must lie in [0, 1]; each is checked as it is read.
        classes: the names of labels 0, 1, ..., or None.
        files: the name of each sample, such as its file's; or None.
        rows: where in its source each sample is, (N,) int64, if samples were chosen.
        takes: the labels that the model accepts; each label is checked when it is read.
    """

    dataset: Dataset[Any]
    shape: torch.Size
    dtype: torch.dtype
    labelled: bool
    name: str = "dataset"
    provenance: str = "a torch Dataset"
    bounded: bool = True
    classes: tuple[str, ...] | None = None
    files: Sequence[str] | None = None
    rows: torch.Tensor | None = None
    takes: LabelRange | None = None

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    @property
    def range(self) -> Range | None:
        """The smallest and largest value that images can have; None if not known."""
        return UNIT if self.bounded or self.dtype not in FLOATS else None

    def slice(self, start: int, stop: int) -> DatasetData:
        """Samples start to stop."""
        return self.select(torch.arange(start, stop))

    def select(self, rows: torch.Tensor) -> DatasetData:
        """The samples ``rows``, (n,) int64."""
        numbers = rows.tolist()
        files = None if self.files is None else [self.files[row] for row in numbers]
        own = rows if self.rows is None else self.rows[rows]
        return replace(self, dataset=Subset(self.dataset, numbers), files=files, rows=own)

    def check_binary(self) -> None:
        """Raise ValueError if the images are uint8 of 0 and 1 alone (`check_not_binary`)."""
        if self.dtype == torch.uint8:

            def samples(rows: Iterable[int]) -> Iterable[torch.Tensor]:
                return (self[row][0] for row in rows)

            check_not_binary(samples, len(self), self.name)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | None]:
        """One image and its label; ValueError if its shape or dtype differs from the first
        one's."""
        return checked_item(self, self.dataset[index], index)


def checked_item(like: Any, item: Any, index: int) -> tuple[torch.Tensor, int | None]:
    """An item's image and label; ValueError if shape or dtype differ from the data's."""
    image, label = _split(item, like.name)
    image = image_tensor(image, f"{like.name}, item {index}", bounded=like.bounded)
    if (image.shape, image.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{like.name}: item {index} is {image.dtype} of shape {tuple(image.shape)}, and "
            f"item 0 {like.dtype} of {tuple(like.shape)}; resize and convert all alike"
        )
    if not like.labelled:
        return image, None
    if (value := _as_integer(label)) is None:
        raise ValueError(f"{like.name}: the label of item {index} is {label!r}, not an integer")
    if like.takes is not None:
        like.takes.check(value, f"{like.name}, item {index},")
    return image, value


def first_item(item: Any, name: str, bounded: bool, labels: bool) -> tuple[torch.Tensor, bool]:
    """The first item's image, and whether it has a label.

    Raises:
        TypeError: a label that is no whole number, if ``labels`` are wanted.
    """
    image, label = _split(item, name)
    if labels and label is not None and _as_integer(label) is None:
        raise TypeError(
            f"{name}: the label of item 0 is {str(label)[:60]!r} ({type(label).__name__}), and a label "
            "is a whole number: give items with such labels, or leave the labels out, "
            "as_data(dataset, labels=False)"
        )
    image = image_tensor(image, f"{name}, item 0", bounded=bounded)
    return image, labels and label is not None


def from_dataset(
    dataset: Dataset[Any], *, name: str | None = None, bounded: bool = True, labels: bool = True
) -> DatasetData:
    """Check the first item and wrap the Dataset.

    Args:
        bounded: as in `from_array`.
        labels: False leaves the items' labels out.

    Raises:
        TypeError: one without a length, items that aren't images, or labels that aren't integers.
        ValueError: an empty one, values outside [0, 1], or uint8 of 0 and 1 alone.
    """
    name = name or type(dataset).__name__
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{name} has no length and can't be read by index; give a map-style torch Dataset, "
            "with __len__ and __getitem__, or an IterableDataset"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name}: there is nothing in it")
    image, labelled = first_item(dataset[0], name, bounded, labels)
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    data = DatasetData(
        dataset,
        image.shape,
        image.dtype,
        labelled,
        name,
        f"the torch Dataset {kind}, {len(dataset)} items",
        bounded,
        _classes(dataset) if labelled else None,
        _list_of(dataset, ("files",)),
    )
    if bounded:
        data.check_binary()
    return data


def known_labels(data: DatasetData) -> Any:
    """The labels of all samples, (N,), if the Dataset stores them; else None."""
    return _list_of(data.dataset, ("labels", "targets")) if data.labelled else None


def check_known_labels(data: DatasetData, takes: LabelRange) -> None:
    """Raise ValueError for a label out of range, as far as this is known without reading all items.

    A stored label counts only after its item was read, because a transform may change labels.
    """
    known = known_labels(data)
    if known is None:
        return
    try:
        labels = torch.as_tensor(np.asarray(known))
    except (TypeError, ValueError):
        return
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        return
    for row in takes.out_of_range(labels)[:1].tolist():
        replace(data, takes=takes)[row]


def _list_of(dataset: Any, names: tuple[str, ...]) -> Any:
    """A Dataset's attribute with an entry for every item; also for Subsets and concatenated
    Datasets."""
    if isinstance(dataset, Subset):
        whole = _list_of(dataset.dataset, names)
        return None if whole is None else [whole[int(i)] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_list_of(part, names) for part in dataset.datasets]
        return None if any(p is None for p in parts) else [v for part in parts for v in part]
    if isinstance(dataset, TensorDataset) and "labels" in names and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    for name in names:
        found = getattr(dataset, name, None)
        if isinstance(found, (list, tuple, np.ndarray, torch.Tensor)) and len(found) == len(
            dataset
        ):
            return found
    return None


def _classes(dataset: Any) -> tuple[str, ...] | None:
    """The class names, as torchvision's and Hugging Face's data sets store them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if found is None and isinstance(features, Mapping):
        found = getattr(features.get("label"), "names", None)
    if not isinstance(found, (list, tuple)) or len(found) == 0:
        return None
    return tuple(found) if all(isinstance(name, str) for name in found) else None


def in_memory(data: DatasetData) -> ArrayData:
    """Read every item once into one array, which trains far faster than reading items every
    epoch."""
    images = torch.empty((len(data), *data.shape), dtype=data.dtype)
    labels = torch.empty(len(data), dtype=torch.int64) if data.labelled else None
    for i in range(len(data)):
        images[i], label = data[i]
        if labels is not None:
            assert label is not None  # as data.labelled says
            labels[i] = label
    return ArrayData(
        images,
        labels,
        data.name,
        data.provenance + ", read into memory",
        range=range_of(images, data.name) if data.dtype in FLOATS else UNIT,
        classes=data.classes,
        files=data.files,
        rows=data.rows,
    )


def collate(items: list[tuple[torch.Tensor, int | None]]) -> tuple[torch.Tensor, Any]:
    """A DataLoader's collate_fn for the items of a DatasetData."""
    images, labels = zip(*items, strict=True)
    stacked = torch.stack(images)
    return stacked, None if labels[0] is None else torch.tensor(labels, dtype=torch.int64)


def image_tensor(image: Any, name: str, *, bounded: bool = True) -> torch.Tensor:
    """One image of any accepted kind as a (C, H, W) or (D,) tensor, not scaled."""
    array = image
    if hasattr(image, "getbands"):  # a PIL image, known without importing PIL
        if image.mode.startswith("I") or image.mode == "F":
            raise ValueError(
                f"{name}: it has more than 8 bits a pixel (mode {image.mode}), whose range is not "
                "known: convert it to 8 bits, or give an array"
            )
        if image.mode != "RGBA":
            image = flat(image)
        if image.mode not in ("L", "RGB", "RGBA", "1"):
            image = image.convert("RGB")
        array = np.array(image)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    elif isinstance(image, np.ndarray) and image.ndim == 3 and is_channels_last(image.shape):
        array = image.transpose(2, 0, 1)
    elif not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"{name}: an image must be a torch tensor, a NumPy array or a PIL image, or the first "
            f"of a tuple, and is a {type(image).__name__}"
        )
    tensor = as_tensor(array, name)
    if tensor.dtype not in (torch.uint8, torch.bool, *FLOATS):
        raise TypeError(
            f"{name}: an image must be uint8 (0..255), bool, or floating point in [0, 1], "
            f"and is {tensor.dtype}"
        )
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim not in (1, 3) or tensor.numel() == 0:
        raise ValueError(
            f"{name}: an image must be (C, H, W), (H, W) or (D,), "
            f"and its shape is {tuple(tensor.shape)}"
        )
    if tensor.is_floating_point():
        found = range_of(tensor, name)
        if bounded:
            check_unit(found, name)
    return tensor


def _split(item: Any, name: str) -> tuple[Any, Any]:
    """An item's image and label. Raises for other parts of the item that must not be ignored."""
    if isinstance(item, Mapping):
        if "mask" in item:
            raise TypeError(f"{name}: its items have a mask, which can't be used: leave it out")
        if "image" not in item:
            raise TypeError(
                f"an item of the Dataset has the keys {', '.join(map(str, item))}, and image must be "
                "one of them (label may be)"
            )
        return item["image"], item.get("label")
    if isinstance(item, (tuple, list)):
        if not item:
            raise TypeError("an item of the Dataset is an empty tuple; an image must come first")
        if len(item) > 2:
            raise TypeError(
                f"{name}: its items have {len(item)} parts, and an image and a label can be used: "
                "give items of those alone"
            )
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _as_integer(label: Any) -> int | None:
    """The label as an int if it is a single integer, else None."""
    if isinstance(label, (torch.Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    return int(label) if isinstance(label, (int, np.integer, np.bool_)) else None
