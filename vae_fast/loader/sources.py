"""Data sets whose batches can be gathered from memory at once, with the bits of torch's loader.

A source reads the data set's present content. It keeps no copy, so it sees writes to the data. Its
``mark`` shows whether anything else was changed or replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from vae_fast.functional import gather_batch
from vae_fast.loader.elementwise import Mark, mark_of

Index = list[int]  # of a batch, non-negative
_SHIFTS = (0, 1, 85, 254)  # of the images with all byte values, by which a transform is tabulated


class Source(Protocol):
    """Attributes:
    what: what it serves, for the log.
    """

    what: str

    def mark(self) -> Mark | str:
        """The data set's present parts, or the reason why it can no longer be served; see
        ``same``."""

    def batch(self, index: Index) -> Any:
        """The value of ``default_collate([dataset[i] for i in index])``."""


def source_of(dataset: Any) -> Source | str:
    """The source of ``dataset``, or a sentence that says why there is none."""
    for cls in (Tensors, Array, Part, Pictures):
        if cls.fits(dataset):
            found = cls.of(dataset)
            break
    else:
        return f"a {type(dataset).__name__} is not known to lie in memory"
    if isinstance(found, str):
        return found
    if len(dataset) == 0:
        return "the data set is empty"
    return checked(found, dataset) or found


def checked(source: Source, dataset: Any) -> str:
    """Compare some samples with the data set's; returns how they differ, or ""."""
    last = len(dataset) - 1
    index = sorted({0, last // 3, last // 2, last})
    expected = default_collate([dataset[i] for i in index])
    if not _equal(source.batch(index), expected):
        return f"some samples of the {type(dataset).__name__} come out differently"
    return ""


def numbers(index: Sequence[Any]) -> Index:
    """The index as Python integers.

    Raises:
        LookupError: it has negative numbers or other types, which the data set must handle.
    """
    if set(map(type, index)) != {int}:
        index = [_number(i) for i in index]
    if not index or min(index) < 0:
        raise LookupError("left to the data set itself")
    return index  # type: ignore[return-value]


def _number(value: Any) -> int:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.numpy()[()]
    if type(value) is not int and not isinstance(value, np.integer):
        raise LookupError("left to the data set itself")
    return int(value)


def _equal(a: Any, b: Any) -> bool:
    """Whether two batches have the same bits, types and layout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
        return False
    return torch.equal(*(t.contiguous().view(torch.uint8) for t in (a, b)))


def _as_torch_has_it(function: Any, module: str, name: str) -> bool:
    return (
        getattr(function, "__module__", "") == module
        and getattr(function, "__qualname__", "") == name
    )


def _plain(tensor: Any) -> bool:
    """Whether the tensor is a plain one, with its numbers in this process's memory."""
    return (
        type(tensor) is Tensor
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dim() > 0
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_complex())
    )


class Tensors:
    """A TensorDataset: rows of its tensors."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._dataset = dataset
        self.what = f"rows of {len(dataset.tensors)} tensors"

    @staticmethod
    def fits(dataset: Any) -> bool:
        cls = type(dataset)
        return (
            isinstance(dataset, TensorDataset)
            and not hasattr(dataset, "__getitems__")
            and _as_torch_has_it(
                cls.__getitem__, "torch.utils.data.dataset", "TensorDataset.__getitem__"
            )
        )

    @classmethod
    def of(cls, dataset: TensorDataset) -> Tensors | str:
        found = cls(dataset)
        mark = found.mark()
        return mark if isinstance(mark, str) else found

    def mark(self) -> Mark | str:
        tensors = self._dataset.tensors
        if not all(map(_plain, tensors)):
            return "its tensors are not all plain numbers in memory"
        return (type(self._dataset).__getitem__, *tensors)

    def batch(self, index: Index) -> list[Tensor]:
        rows = _tensor(index)
        return [_rows(tensor, rows) for tensor in self._dataset.tensors]


class Array:
    """A tensor or an array as a data set: its rows."""

    def __init__(self, array: Tensor | np.ndarray) -> None:
        self._array, self.what = array, "rows of an array"

    @staticmethod
    def fits(dataset: Any) -> bool:
        return type(dataset) in (Tensor, np.ndarray)

    @classmethod
    def of(cls, dataset: Tensor | np.ndarray) -> Array | str:
        if isinstance(dataset, Tensor):
            return cls(dataset) if _plain(dataset) else "it is no plain tensor in memory"
        if dataset.dtype.kind not in "biuf" or not dataset.dtype.isnative or dataset.ndim < 2:
            return f"it is an array of {dataset.dtype} of {dataset.ndim} dimensions"
        return cls(dataset)

    def mark(self) -> Mark | str:
        array = self._array
        if isinstance(array, Tensor) and not _plain(array):
            return "it is no plain tensor in memory"
        return array, tuple(array.shape)

    def batch(self, index: Index) -> Tensor:
        if isinstance(self._array, Tensor):
            return _rows(self._array, _tensor(index))
        return torch.from_numpy(self._array[index])


class Part:
    """A Subset of any of these."""

    def __init__(self, dataset: Subset[Any], source: Source) -> None:
        self._dataset, self._source = dataset, source
        self.what = f"a part of {source.what}"

    @staticmethod
    def fits(dataset: Any) -> bool:
        cls = type(dataset)
        return isinstance(dataset, Subset) and all(
            _as_torch_has_it(getattr(cls, name), "torch.utils.data.dataset", f"Subset.{name}")
            for name in ("__getitem__", "__getitems__")
        )

    @classmethod
    def of(cls, dataset: Subset[Any]) -> Part | str:
        source = source_of(dataset.dataset)
        return source if isinstance(source, str) else cls(dataset, source)

    def mark(self) -> Mark | str:
        inner, cls = self._source.mark(), type(self._dataset)
        if isinstance(inner, str):
            return inner
        return self._dataset.dataset, cls.__getitem__, cls.__getitems__, inner

    def batch(self, index: Index) -> Any:
        places = self._dataset.indices
        if isinstance(places, (Tensor, np.ndarray)):
            chosen = places[index].tolist()
        else:
            chosen = [places[i] for i in index]
        return self._source.batch(numbers(chosen))


class Pictures:
    """torchvision's uint8 data sets (MNIST and similar ones, CIFAR, SVHN) under a transform that is
    the same function of every byte. A table of 256 values per channel replaces the transform."""

    # By the class that defines __getitem__: the attribute with the labels, and the channel axis of
    # ``data``.
    _KINDS: ClassVar[dict[tuple[str, str], tuple[str, int | None]]] = {
        ("torchvision.datasets.mnist", "MNIST"): ("targets", None),
        ("torchvision.datasets.cifar", "CIFAR10"): ("targets", 3),
        ("torchvision.datasets.svhn", "SVHN"): ("labels", 1),
    }

    def __init__(self, dataset: Any, labels: str, channel: int | None) -> None:
        self._dataset, self._labels, self._channel = dataset, labels, channel
        self._tables = np.zeros((1, 256), np.uint8)  # (C, 256)
        self._shape: tuple[int, ...] = ()  # of a transformed sample
        self._is_scale = False  # the table is x / 255 in float32
        self.what = f"{type(dataset).__name__}'s images"

    @classmethod
    def _kind(cls, dataset: Any) -> tuple[str, int | None] | None:
        function = type(dataset).__getitem__ if hasattr(type(dataset), "__getitem__") else None
        for (module, name), kind in cls._KINDS.items():
            if module in sys.modules and _as_torch_has_it(function, module, f"{name}.__getitem__"):
                return kind
        return None

    @classmethod
    def fits(cls, dataset: Any) -> bool:
        return not hasattr(dataset, "__getitems__") and cls._kind(dataset) is not None

    @classmethod
    def of(cls, dataset: Any) -> Pictures | str:
        kind = cls._kind(dataset)
        assert kind is not None
        found = cls(dataset, *kind)
        mark = found.mark()
        if isinstance(mark, str):
            return mark
        return found._read_transform() or found

    def mark(self) -> Mark | str:
        dataset = self._dataset
        if dataset.target_transform is not None:
            return "it has a target_transform"
        data, labels = dataset.data, getattr(dataset, self._labels)
        grey = self._channel is None
        if grey and not (type(data) is Tensor and data.dtype == torch.uint8 and data.dim() == 3):
            return "its data are not (N, H, W) uint8"
        if not grey and not (
            type(data) is np.ndarray
            and data.dtype == np.uint8
            and data.ndim == 4
            and data.shape[self._channel] == 3
        ):
            return "its data are not an array (N, 3, H, W) or (N, H, W, 3) of uint8"
        if grey and not (type(labels) is Tensor and labels.dim() == 1 and _plain(labels)):
            return "its labels are not a tensor (N,)"
        transform = mark_of(dataset.transform)
        if isinstance(transform, str):
            return transform
        return data, tuple(data.shape), labels, type(dataset).__getitem__, transform

    def _channels_first(self, rows: np.ndarray) -> np.ndarray:
        """(B, C, H, W) of rows as ``data`` has them."""
        if self._channel is None:
            return rows[:, None]
        return np.ascontiguousarray(np.moveaxis(rows, self._channel, 1))

    def _read_transform(self) -> str:
        """Fill the tables from images with all byte values; returns the reason of a failure, or
        ""."""
        from PIL import Image

        shape = self._channels_first(np.zeros((1, *self._dataset.data.shape[1:]), np.uint8)).shape
        channels, plane = shape[1], shape[2] * shape[3]
        strange = "its transform did not give the same function of every byte when it was tried"
        tables, seen = None, np.zeros((channels, 256), bool)
        places = np.arange(channels)[:, None]
        shifts = [*_SHIFTS, *range(0, 256, plane)] if plane < 256 else list(_SHIFTS)
        for shift in shifts:
            bytes_ = (np.arange(channels * plane) + shift).astype(np.uint8)
            bytes_ = bytes_.reshape(channels, *shape[2:])
            picture = (
                bytes_[0] if channels == 1 else np.ascontiguousarray(bytes_.transpose(1, 2, 0))
            )
            made = self._dataset.transform(Image.fromarray(picture))
            if not isinstance(made, Tensor) or made.device.type != "cpu":
                return "its transform does not give tensors in memory"
            made = default_collate([made])[0]
            if made.numel() != bytes_.size or made.dtype in (torch.bfloat16, torch.complex64):
                return f"its transform gives {tuple(made.shape)}, {made.dtype} of an image"
            values = made.reshape(channels, plane).numpy()
            if tables is None:
                tables = np.zeros((channels, 256), values.dtype)
                self._shape = tuple(made.shape)
            if values.dtype != tables.dtype or tuple(made.shape) != self._shape:
                return strange
            index = bytes_.reshape(channels, plane)
            new = ~seen[places, index]
            tables[places, index] = np.where(new, values, tables[places, index])
            seen[places, index] = True
            if not np.array_equal(_bits(tables[places, index]), _bits(values)):
                return strange
        if tables is None or not seen.all():
            return strange
        self._tables = tables
        scale = torch.arange(256).float().div(255).numpy()
        self._is_scale = tables.dtype == np.float32 and all(
            np.array_equal(_bits(table), _bits(scale)) for table in tables
        )
        return ""

    def batch(self, index: Index) -> list[Tensor]:
        labels, rows = getattr(self._dataset, self._labels), _tensor(index)
        if self._channel is None:
            found = _rows(labels, rows).to(torch.int64)
        elif isinstance(labels, np.ndarray):
            found = torch.from_numpy(labels[index].astype(np.int64))
        else:
            found = default_collate([labels[i] for i in index])
        return [self._images(rows), found]

    def _images(self, rows: Tensor) -> Tensor:
        data = torch.as_tensor(self._dataset.data)
        if self._is_scale and self._channel in (None, 1):
            images = gather_batch(data, rows, mode="scale")
        else:
            bytes_ = self._channels_first(gather_batch(data, rows).numpy())
            made = np.empty(bytes_.shape, self._tables.dtype)
            for channel, table in enumerate(self._tables):
                # NumPy uses one thread; torch's OpenMP threads would wait for each other.
                made[:, channel] = table.take(bytes_[:, channel], mode="clip")
            images = torch.from_numpy(made)
        return images.view(len(rows), *self._shape)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def _tensor(index: Index) -> Tensor:
    return torch.from_numpy(
        np.fromiter(index, np.int64, len(index))
    )  # torch.tensor takes 7 times as long


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows)
