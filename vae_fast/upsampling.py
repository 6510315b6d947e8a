"""Nearest-neighbour upsampling by two and a 3x3 convolution, as one transposed convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def spread(weight: Tensor) -> Tensor:
    """The kernel (I, O, 4, 4) of a transposed convolution with stride 2 and padding 1. It equals
    doubling every pixel, followed by a 3x3 convolution with ``weight`` (O, I, 3, 3).

    Two neighbouring taps see the same doubled pixel, so each of the four is a sum of at most two of
    the three, in both directions. 4/9 of the multiplications are left.
    """
    taps = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    taps = taps[:, :, 1:] + taps[:, :, :-1]
    taps = taps[..., 1:] + taps[..., :-1]
    return taps.transpose(0, 1)
