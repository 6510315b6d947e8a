"""The base of quantisers: vectors to codes and back, with a gradient through the quantisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """``z``: the quantised vectors (M, D), with gradients for the input; ``codes``: (M, C) int64;
    ``loss``: (M,), a term of the model's loss."""

    z: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Maps vectors (M, ``dim``) to vectors of a finite set. ``sizes``: the number of values of each
    of the C codes of a vector."""

    dim: int
    sizes: tuple[int, ...]

    def forward(self, z: Tensor) -> Quantized:
        """Quantise z (M, dim)."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z)")

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (M, dim) of codes (M, C)."""
        raise NotImplementedError(f"{type(self).__name__} must implement lookup(codes)")


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q; its gradient goes to z unchanged (Bengio et al. 2013)."""
    return z + (q - z).detach()


def rotated(z: Tensor, q: Tensor) -> Tensor:
    """q as a rotation and scaling of z; its gradient goes to z through it (Fifty et al. 2024, 4.2).

    The map |q| / |z| (I - 2 r r^T + 2 q' z'^T) is constant for the gradient. z' = z / |z|,
    q' = q / |q|, and r is the unit vector along z' + q'.
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


def perplexity(frequency: Tensor) -> Tensor:
    """exp(entropy) of frequencies (..., K), which need not sum to 1: the effective number of codes
    in use."""
    p = frequency / frequency.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(p, p).sum(-1))
