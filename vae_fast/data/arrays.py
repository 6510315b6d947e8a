"""Data held as one array. Every in-memory source becomes this."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from vae_fast.data.mapped import MappedFile
from vae_fast.data.ranges import UNIT, Range, check_not_binary, check_unit, range_of
from vae_fast.data.sparse_rows import SparseRows
from vae_fast.functional import gather_batch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (16, 32, 64)}
_INTEGERS.add(torch.int8)


@dataclass(frozen=True)
class ArrayData:
    """Images and their labels, one tensor each.

    Attributes:
        images: (N, C, H, W), or (N, D) for vectors. uint8 (0..255 stands for x/255), bool, or
            floating point; or the rows of a sparse matrix, of which batches are made dense.
        labels: (N,) int64, or None.
        name: the data set's name.
        provenance: where it came from, for the run's records.
        mapped: whether the images are in a memory-mapped file. They are read when needed, and
            writing to them crashes.
        range: the least and largest value of floating-point images; else (0, 1).
        classes: the names of labels 0, 1, ..., or None.
        files: the name of each sample, such as its file's; or None.
        rows: where in its source each sample is, (N,) int64, if samples were chosen.
        columns: the names of vectors' columns, of a table; or None.
        file: the file of mapped images. It is checked before and after rows are gathered.
    """

    images: torch.Tensor | SparseRows
    labels: torch.Tensor | None = None
    name: str = "array"
    provenance: str = "an array"
    mapped: bool = False
    range: Range = UNIT
    classes: tuple[str, ...] | None = None
    files: Sequence[str] | None = None
    rows: torch.Tensor | None = None
    columns: tuple[str, ...] | None = None
    file: MappedFile | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> torch.Size:
        """The shape of one sample: (C, H, W), or (D,)."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def to(self, device: torch.device) -> ArrayData:
        """The same data on a device; memory-mapped data is not moved."""
        if self.mapped:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    @property
    def dense_images(self) -> torch.Tensor:
        """``images`` of data that are no sparse matrix."""
        assert isinstance(self.images, torch.Tensor)
        return self.images

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and labels of the given samples, (B,) int64 on the data's device: copies.

        Raises:
            OSError: the file that they are mapped from was cut short (`MappedFile`).
        """
        labels = None if self.labels is None else self.labels.index_select(0, samples)
        if self.file is None:
            return self._gathered(samples), labels
        self.file.check()
        images = self._gathered(samples)
        self.file.check()
        return images, labels

    def _gathered(self, samples: torch.Tensor) -> torch.Tensor:
        if self.dtype in (torch.uint8, torch.bool):
            return gather_batch(self.dense_images, samples)
        return self.images.index_select(0, samples)

    def slice(self, start: int, stop: int) -> ArrayData:
        """Samples start to stop, as views."""
        cut = slice(start, stop)
        return replace(
            self,
            images=self.images[cut],
            labels=None if self.labels is None else self.labels[cut],
            files=None if self.files is None else self.files[cut],
            rows=None if self.rows is None else self.rows[cut],
        )

    def named(self, classes: Sequence[str]) -> ArrayData:
        """The same data, with names for its labels."""
        labels = self.labels
        if labels is None or int(labels.max()) >= len(classes):
            found = "no labels" if labels is None else f"label {int(labels.max())}"
            raise ValueError(
                f"{self.name}: there are {len(classes)} names of classes, and the data have {found}: "
                "give labels from 0 on, and a name for each"
            )
        return replace(self, classes=tuple(classes))

    def select(self, rows: torch.Tensor) -> ArrayData:
        """The samples ``rows``, (n,) int64: a copy, in memory; of a sparse matrix, its values."""
        if isinstance(self.images, SparseRows):
            images: torch.Tensor | SparseRows = self.images[rows]
            labels = None if self.labels is None else self.labels[rows]
        else:
            images, labels = self.gather(rows)
        files = None if self.files is None else [self.files[row] for row in rows.tolist()]
        own = rows if self.rows is None else self.rows[rows]
        return replace(
            self, images=images, labels=labels, files=files, rows=own, mapped=False, file=None
        )


def from_array(
    images: np.ndarray[Any, Any] | torch.Tensor,
    labels: np.ndarray | torch.Tensor | None = None,
    *,
    name: str = "array",
    provenance: str = "an array",
    bounded: bool = True,
    files: Sequence[str] | None = None,
) -> ArrayData:
    """Check an array and wrap it. Values are not scaled, and copied only if they must be converted.

    Bytes of a bool array other than 0 and 1 count as True.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, D); uint8, bool, or floating point in [0, 1]. A NumPy
            array of (N, H, W, C) with C of 1, 3 or 4 and larger H and W is taken as channels-last
            and transposed; a torch tensor never is.
        labels: (N,) integers, or strings, of which the sorted ones become the classes.
        bounded: False lets floating-point values lie outside [0, 1], for likelihoods other than
            Bernoulli's, and uint8 be 0 and 1, for a likelihood of classes; and other integers, such
            as counts, become float32.
        files: a name for each sample.

    Raises:
        TypeError: a type or dtype that isn't one of these.
        ValueError: a shape that isn't one of these, no samples, values outside [0, 1], NaN or
            infinity, uint8 of 0 and 1 alone, masked values, or another number of labels or files
            than of images.
    """
    mapped = isinstance(images, np.memmap)
    tensor = as_tensor(images, name)
    if not bounded and tensor.dtype in _INTEGERS:
        tensor, mapped = _as_floats(tensor, name), False
    if tensor.dtype not in (torch.uint8, torch.bool, *FLOATS):
        raise TypeError(
            f"{name}: images must be uint8 (0..255), bool, or floating point in [0, 1], and are "
            f"{_dtype_name(tensor)}; if they are whole numbers 0..255, convert them to uint8"
        )
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.ndim == 4 and isinstance(images, np.ndarray) and is_channels_last(images.shape[1:]):
        tensor = tensor.permute(0, 3, 1, 2)
        if not mapped:  # a mapped file stays where it is; batches gathered from it are contiguous
            tensor = tensor.contiguous()
    elif tensor.ndim not in (2, 4):
        raise ValueError(
            f"{name}: images must be (N, H, W), (N, C, H, W) or (N, D), "
            f"and their shape is {tuple(tensor.shape)}"
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name}: there is nothing in it; its shape is {tuple(tensor.shape)}")
    found = range_of(tensor, name) if tensor.is_floating_point() else UNIT
    labels, classes = as_labels(labels, len(tensor), name)
    if files is not None and len(files) != len(tensor):
        raise ValueError(
            f"{name}: there are {len(tensor)} images and {len(files)} names of files: give one name "
            "for each image"
        )
    file = MappedFile.of(cast("np.memmap[Any, Any]", images)) if mapped else None
    data = ArrayData(tensor, labels, name, provenance, mapped, found, classes, files, file=file)
    if bounded:
        check_bounded(data)
    return data


def _as_floats(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Integers, such as counts, as float32, which holds each of them."""
    floats = tensor.to(torch.float32)
    if tensor.numel() and float(floats.abs().max()) >= 2**24 and _largest(tensor) > 2**24:
        raise ValueError(
            f"{name}: {tensor.dtype} beyond 2^24, which float32 does not hold: scale it"
        )
    return floats


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.to(torch.float64).abs().max())


def check_bounded(data: ArrayData) -> None:
    """Raise ValueError unless a Bernoulli likelihood accepts the values: floats in [0, 1], or uint8
    with values above 1."""
    check_unit(data.range, data.name)
    check_binary(data)


def check_binary(data: ArrayData) -> None:
    """Raise ValueError if the data are uint8 of 0 and 1 alone (`check_not_binary`)."""
    if data.dtype != torch.uint8:
        return
    images = data.dense_images
    block = max(1, (1 << 24) // max(1, images[0].numel()))

    def samples(rows: Sequence[int]) -> Iterable[torch.Tensor]:
        if len(rows) == len(images):
            return images.split(block)
        return (images[row] for row in rows)

    check_not_binary(samples, len(images), data.name)


def as_tensor(array: Any, name: str) -> torch.Tensor:
    """A tensor over the array's memory, or over a copy if torch cannot use that memory."""
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.is_quantized or array.is_nested:
            kind = "a nested tensor" if array.is_nested else array.layout
            raise TypeError(f"{name}: a dense tensor is needed, not {kind}")
        if array.device.type == "meta":
            raise TypeError(f"{name}: a meta tensor has no values; give one with memory")
        if type(array).__name__ == "MaskedTensor":
            raise TypeError(f"{name}: a mask can't be used: fill what it hides, to_tensor(value)")
        return _true_bools(array.detach())
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: a NumPy array or torch tensor is needed, not {_type_name(array)}")
    if np.ma.is_masked(array):
        raise ValueError(
            f"{name}: {np.ma.count_masked(array):,} of its values are masked, and a mask can't be used: "
            "fill them, array.filled(value), or leave those samples out"
        )
    if array.dtype.hasobject or array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name}: an array of numbers is needed, and its dtype is {array.dtype}"
            + ("; stack equal-sized images with np.stack" if array.dtype.hasobject else "")
        )
    if array.dtype.itemsize > 8:
        raise TypeError(f"{name}: {array.dtype} has no torch dtype; convert it to float32")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # A read-only array warns that the tensor could be written to. Nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writ", category=UserWarning)
        tensor = torch.from_numpy(array)
    return tensor if isinstance(array, np.memmap) else _true_bools(tensor)


def _true_bools(tensor: torch.Tensor) -> torch.Tensor:
    """Bools whose bytes are 0 and 1. A mask of 0 and 255 viewed as bool has other bytes."""
    if tensor.dtype != torch.bool or tensor.numel() == 0:
        return tensor
    values = tensor.view(torch.uint8)
    return values.ne(0) if int(values.max()) > 1 else tensor


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether one sample of this shape can only sensibly be (H, W, C)."""
    return shape[2] in (1, 3, 4) and shape[0] > 4 and shape[1] > 4


def as_labels(
    labels: Any, count: int, name: str
) -> tuple[torch.Tensor | None, tuple[str, ...] | None]:
    """Labels as int64, and the class names if the labels were strings."""
    if labels is None:
        return None, None
    classes = None
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "US":
        names, labels = np.unique(labels, return_inverse=True)
        classes = tuple(
            n if isinstance(n, str) else n.decode(errors="replace") for n in names.tolist()
        )
    tensor = as_tensor(labels, f"{name}'s labels")
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: labels must be integers, and are {_dtype_name(tensor)}")
    if tensor.shape != (count,):
        raise ValueError(
            f"{name}: {count} images need labels of shape ({count},), "
            f"and theirs is {tuple(tensor.shape)}"
        )
    whole = tensor.to(torch.int64)
    if tensor.dtype == torch.uint64 and bool((whole < 0).any()):
        raise ValueError(f"{name}: a label is above 2^63: labels are classes, counted from 0")
    return whole, classes


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
