"""What quantisers share: vectors to codes and back, and gradients past the step between."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """``z``: (M, D), whose gradient goes on to what was quantised; ``codes``: (M, C) int64, C numbers
    for each vector; ``loss``: (M,), what is to be added to the model's loss."""

    z: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Vectors (M, ``dim``) to vectors of a finite set. ``sizes``: how many values each of a vector's C
    codes can take."""

    dim: int
    sizes: tuple[int, ...]

    def forward(self, z: Tensor) -> Quantized:
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z)")

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (M, dim) that codes (M, C) stand for."""
        raise NotImplementedError(f"{type(self).__name__} must implement lookup(codes)")


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q, whose gradient goes to z as it is (Bengio et al. 2013)."""
    return z + (q - z).detach()


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """q, as z turned and stretched; its gradient goes to z by the same turn (Fifty et al. 2024, 4.2).

    Turn and stretch are constants for the gradient: |q| / |z| (I - 2 r r^T + 2 q' z'^T), with unit
    vectors z', q' and r, the one between them.
    """
    with torch.no_grad():
        stretch = q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        from_, to = F.normalize(z, dim=-1), F.normalize(q, dim=-1)
        between = F.normalize(from_ + to, dim=-1)
    turned = (
        z
        - 2 * between * (between * z).sum(-1, keepdim=True)
        + 2 * to * (from_ * z).sum(-1, keepdim=True)
    )
    return straight_through(stretch * turned, q)


def count(codes: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """How often each of ``size`` codes occurs in (M,), (size,)."""
    ones = torch.ones(codes.shape, dtype=dtype, device=codes.device)
    return torch.zeros(size, dtype=dtype, device=codes.device).scatter_add_(0, codes, ones)


def perplexity(frequency: Tensor) -> Tensor:
    """exp of the entropy of frequencies (..., K) that need not sum to 1: how many codes are in use, as
    if evenly."""
    p = frequency / frequency.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(p, p).sum(-1))
