"""Data as sequences of steps, which recurrent networks read, and back.

``shape`` is that of a sample: (T,) or (T, F), or (C, T, W) for images, which are sequences of rows.
T may differ between batches, except for images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def step_size(shape: Sequence[int]) -> int:
    """F, the number of values in a step."""
    if not 1 <= len(shape) <= 3:
        raise ValueError(
            f"samples of a sequence model are (T,), (T, F) or images (C, T, W), got {tuple(shape)}"
        )
    return {1: 1, 2: shape[-1], 3: shape[0] * shape[-1]}[len(shape)]


def to_steps(
    x: Tensor,
    shape: Sequence[int],
    padding: float | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x as steps (N, T, F) with zeros for padding, and the lengths (N,). Without ``lengths``, a
    sequence ends at its last step that is not ``padding``: a value, NaN, or None for no padding."""
    fits = x.dim() == len(shape) + 1 and x.shape[1] > 0
    if len(shape) == 3:
        fits = fits and tuple(x.shape[1:]) == tuple(shape)
    elif len(shape) == 2:
        fits = fits and x.shape[2] == shape[1]
    if not fits:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but the model was built for sequences "
            f"(N, {', '.join(map(str, shape))}), whose length alone may differ"
        )
    if len(shape) == 3:
        steps = x.transpose(1, 2).flatten(2)
    else:
        steps = x.unsqueeze(2) if len(shape) == 1 else x
    n, t = steps.shape[:2]
    whole = lengths is None and padding is None
    if lengths is None:
        lengths = _lengths_of(steps, padding)
    if tuple(lengths.shape) != (n,):
        raise ValueError(f"lengths must be ({n},), got {tuple(lengths.shape)}")
    if whole:
        return steps, lengths
    inside = torch.arange(t, device=x.device) < lengths.unsqueeze(1)
    return steps.masked_fill(~inside.unsqueeze(2), 0), lengths.clamp(0, t)


def _lengths_of(steps: Tensor, padding: float | None) -> Tensor:
    n, t = steps.shape[:2]
    if padding is None:
        return torch.full((n,), t, device=steps.device)
    real = ~steps.isnan().any(2) if math.isnan(padding) else (steps != padding).any(2)
    return (real * torch.arange(1, t + 1, device=steps.device)).amax(1)


def from_steps(steps: Tensor, shape: Sequence[int], planes: int = 1) -> Tensor:
    """Steps (N, T, P * F) in the layout of data: ``planes`` (P) parameters of each value, (N, P * C,
    ...), or for one the values themselves."""
    steps = steps.unflatten(2, (planes, -1)).transpose(1, 2)  # (N, P, T, F)
    if len(shape) == 3:
        steps = steps.unflatten(3, (shape[0], shape[2])).transpose(2, 3)
    elif len(shape) == 1:
        steps = steps.squeeze(3)
    return steps.flatten(1, 2)
