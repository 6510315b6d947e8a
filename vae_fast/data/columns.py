"""Means and deviations of columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae_fast.data.arrays import ArrayData
from vae_fast.data.batches import Batches

_AT_ONCE = 1 << 22  # values that are looked at together


def statistics_of(data: Any) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each column (D,), or of each channel of (C, H, W).

    In float64, over one pass in which only a block of rows is in memory, by Chan et al. 1979.
    """
    count, mean, square = 0, torch.zeros(()), torch.zeros(())
    for block in _blocks(data):
        values = block.double().transpose(0, 1).flatten(1)  # (D, N) or (C, N H W)
        n = values.shape[1]
        here = values.mean(1)
        within = (values - here[:, None]).square().sum(1)
        delta = here - mean
        square = square + within + delta.square() * (count * n / (count + n))
        mean = mean + delta * (n / (count + n))
        count += n
    return mean, (square / count).sqrt()


def _blocks(data: Any) -> Iterator[Tensor]:
    rows = min(max(1, _AT_ONCE // max(1, data.shape.numel())), len(data))
    if isinstance(data, ArrayData):  # float64 stays float64
        for numbers in torch.arange(len(data)).split(rows):
            yield data.gather(numbers.to(data.images.device))[0]
        return
    for batch in Batches(data, rows, shuffle=False):
        yield batch.images
