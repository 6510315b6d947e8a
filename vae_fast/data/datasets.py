"""Any map-style torch Dataset as a source: its items are turned into images as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from vae_fast.data.arrays import FLOATS, ArrayData, as_tensor, check_range, is_channels_last


@dataclass(frozen=True)
class DatasetData:
    """A torch Dataset that is read item by item, by worker processes if so asked.

    Items are images, tuples of which the first is the image and the second the label, or mappings
    with the keys image and, perhaps, label (as those of HF datasets). An image
    is a torch tensor (C, H, W), (H, W) or (D,), a NumPy array of those shapes or (H, W, C), or a PIL
    image. All have one shape and dtype.

    Attributes:
        dataset: the Dataset.
        shape: the shape of one image: (C, H, W), or (D,).
        dtype: uint8, bool or floating point.
        labelled: whether the items' labels are whole numbers, which are then kept.
    """

    dataset: Dataset
    shape: torch.Size
    dtype: torch.dtype
    labelled: bool
    name: str = "dataset"
    provenance: str = "a torch Dataset"
    bounded: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def slice(self, start: int, stop: int) -> DatasetData:
        """Samples start to stop."""
        return replace(self, dataset=Subset(self.dataset, range(start, stop)))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | None]:
        """One image and its label; ValueError if it isn't like the first one."""
        return checked_item(self, self.dataset[index], index)


def checked_item(like: Any, item: Any, index: int) -> tuple[torch.Tensor, int | None]:
    """An item's image and label, if they are like those of the data; ValueError if not."""
    image, label = _split(item)
    image = image_tensor(image, f"{like.name}, item {index}", bounded=like.bounded)
    if (image.shape, image.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{like.name}: item {index} is {image.dtype} of shape {tuple(image.shape)}, and "
            f"item 0 {like.dtype} of {tuple(like.shape)}; resize and convert all alike"
        )
    if not like.labelled:
        return image, None
    if (value := _whole(label)) is None:
        raise ValueError(f"{like.name}: the label of item {index} is {label!r}, not an integer")
    return image, value


def first_item(item: Any, name: str, bounded: bool) -> tuple[torch.Tensor, bool]:
    """The first item's image, and whether it has a label that is a whole number."""
    image, label = _split(item)
    return image_tensor(image, f"{name}, item 0", bounded=bounded), _whole(label) is not None


def from_dataset(dataset: Dataset, *, name: str | None = None, bounded: bool = True) -> DatasetData:
    """Look at the first item and wrap the Dataset.

    Raises:
        TypeError: one without a length, or items that aren't images.
        ValueError: an empty one, or values outside [0, 1].
    """
    name = name or type(dataset).__name__
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{name} has no length and can't be read by index; give a map-style torch Dataset, "
            "with __len__ and __getitem__, or an IterableDataset"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name}: there is nothing in it")
    image, labelled = first_item(dataset[0], name, bounded)
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    provenance = f"the torch Dataset {kind}, {len(dataset)} items"
    return DatasetData(dataset, image.shape, image.dtype, labelled, name, provenance, bounded)


def in_memory(data: DatasetData) -> ArrayData:
    """Read every item once into one array, which trains far faster than items read again."""
    images = torch.empty((len(data), *data.shape), dtype=data.dtype)
    labels = torch.empty(len(data), dtype=torch.int64) if data.labelled else None
    for i in range(len(data)):
        images[i], label = data[i]
        if labels is not None:
            labels[i] = label
    return ArrayData(images, labels, data.name, data.provenance + ", read into memory")


def collate(items: list[tuple[torch.Tensor, int | None]]) -> tuple[torch.Tensor, Any]:
    """A DataLoader's collate_fn for the items of a DatasetData."""
    images, labels = zip(*items, strict=True)
    stacked = torch.stack(images)
    return stacked, None if labels[0] is None else torch.tensor(labels, dtype=torch.int64)


def eight_bits(image: Any) -> Any:
    """A PIL image of 16 bits a pixel as one of 8, by its upper ones; others as they are.

    Pillow's own conversion clips: all that is not nearly black would be white.
    """
    if image.mode.startswith("I;16"):
        from PIL import Image

        values = np.array(image).astype(np.uint16)  # in this machine's order of bytes
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"it has 32 bits a pixel (mode {image.mode}), whose range is not known: convert it to "
            "8 bits, or give an array"
        )
    return image


def image_tensor(image: Any, name: str, *, bounded: bool = True) -> torch.Tensor:
    """One image of any accepted kind as a (C, H, W) or (D,) tensor, not scaled."""
    array = image
    if hasattr(image, "getbands"):  # a PIL image, known without importing PIL
        try:
            image = eight_bits(image)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
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
        check_range(tensor, name, bounded=bounded)
    return tensor


def _split(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if "image" not in item:
            raise TypeError(
                f"an item of the Dataset has the keys {', '.join(map(str, item))}, and image must be "
                "one of them (label may be)"
            )
        return item["image"], item.get("label")
    if isinstance(item, (tuple, list)):
        if not item:
            raise TypeError("an item of the Dataset is an empty tuple; an image must come first")
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _whole(label: Any) -> int | None:
    """The label as an int if it is one whole number, else None."""
    if isinstance(label, (torch.Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    return int(label) if isinstance(label, (int, np.integer)) else None
