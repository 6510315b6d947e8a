"""Data held as one array: what every in-memory source becomes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vae_fast.functional import gather_batch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ArrayData:
    """Images and their labels, one tensor each.

    Attributes:
        images: (N, C, H, W), or (N, D) for vectors. uint8 (0..255 stands for x/255), bool, or
            floating point in [0, 1].
        labels: (N,) int64, or None.
        name: what the data set is called.
        provenance: where it came from, for the run's records.
        mapped: the images lie in a memory-mapped file: they are read as they are needed, and
            writing to them crashes.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    name: str = "array"
    provenance: str = "an array"
    mapped: bool = False

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
        """The same data on a device; memory-mapped data stays where it is."""
        if self.mapped:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and labels of the given samples, (B,) int64 on the data's device: copies."""
        labels = None if self.labels is None else self.labels.index_select(0, samples)
        if self.dtype in (torch.uint8, torch.bool):
            return gather_batch(self.images, samples), labels
        return self.images.index_select(0, samples), labels

    def slice(self, start: int, stop: int) -> ArrayData:
        """Samples start to stop, as views."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, images=self.images[start:stop], labels=labels)


def from_array(
    images: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor | None = None,
    *,
    name: str = "array",
    provenance: str = "an array",
    bounded: bool = True,
) -> ArrayData:
    """Check an array and wrap it; the values are neither copied nor scaled where they fit.

    Args:
        images: (N, H, W), (N, C, H, W) or (N, D); uint8, bool, or floating point in [0, 1]. A NumPy
            array of (N, H, W, C) with C of 1, 3 or 4 and larger H and W is taken as channels-last
            and transposed; a torch tensor never is.
        labels: (N,) integers.
        bounded: False lets floating-point values lie outside [0, 1], for likelihoods other than
            Bernoulli's.

    Raises:
        TypeError: a type or dtype that isn't one of these.
        ValueError: a shape that isn't one of these, no samples, values outside [0, 1], NaN or
            infinity, or another number of labels than of images.
    """
    mapped = isinstance(images, np.memmap)
    tensor = as_tensor(images, name)
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
    if tensor.is_floating_point():
        check_range(tensor, name, bounded=bounded)
    return ArrayData(tensor, _labels(labels, len(tensor), name), name, provenance, mapped)


def as_tensor(array: Any, name: str) -> torch.Tensor:
    """A tensor over the array's own memory, or over a copy where torch can't use that memory."""
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.is_quantized:
            raise TypeError(f"{name}: a dense tensor is needed, not {array.layout}")
        return array.detach()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: a NumPy array or torch tensor is needed, not {_type_name(array)}")
    if array.dtype.hasobject or array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name}: an array of numbers is needed, and its dtype is {array.dtype}"
            + ("; stack equal-sized images with np.stack" if array.dtype.hasobject else "")
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # A read-only array warns that the tensor could be written to. Nothing here writes to it.
        warnings.filterwarnings("ignore", message=".*not writ", category=UserWarning)
        return torch.from_numpy(array)


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether one sample of this shape can only sensibly be (H, W, C)."""
    return shape[2] in (1, 3, 4) and shape[0] > 4 and shape[1] > 4


def check_range(tensor: torch.Tensor, name: str, *, bounded: bool = True) -> None:
    """Raise ValueError unless all values are finite and, where bounded, in [0, 1]."""
    rows = max(1, (1 << 24) // max(1, tensor[0].numel()))
    low, high = float("inf"), float("-inf")
    for block in tensor.split(rows):  # in blocks: a mapped file may be larger than memory
        block_low, block_high = (float(v) for v in torch.aminmax(block))
        if not (abs(block_low) < float("inf") and abs(block_high) < float("inf")):  # NaN too
            raise ValueError(f"{name}: the data has NaN or infinity in it; remove those samples")
        low, high = min(low, block_low), max(high, block_high)
    if bounded and (low < 0 or high > 1):
        raise ValueError(
            f"{name}: floating-point images must lie in [0, 1], and these lie in "
            f"[{low:g}, {high:g}]; divide 0..255 by 255, or pass bounded=False if the likelihood "
            "isn't Bernoulli's"
        )


def _labels(labels: Any, count: int, name: str) -> torch.Tensor | None:
    if labels is None:
        return None
    tensor = as_tensor(labels, f"{name}'s labels")
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: labels must be integers, and are {_dtype_name(tensor)}")
    if tensor.shape != (count,):
        raise ValueError(
            f"{name}: {count} images need labels of shape ({count},), "
            f"and theirs is {tuple(tensor.shape)}"
        )
    return tensor.to(torch.int64)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
