"""Accurate functions for the reference formulas, in plain PyTorch; autograd's derivatives of them
are accurate too. csrc/math has the kernels' counterparts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x). (F.softplus is linear beyond 20, which is inaccurate in float64.)"""
    return -torch.nn.functional.logsigmoid(-x)


def where(condition: Tensor, x: Tensor, otherwise: float) -> Tensor:
    """x where ``condition``, else a safe number: ``torch.where``'s gradient multiplies that of the
    unused branch by 0, which gives NaN if it is infinite."""
    return torch.where(condition, x, torch.full_like(x, otherwise))


def log1p_shortfall(y: Tensor) -> Tensor:
    """y - log(1 + y) for y >= 0. Near 0, with s = y / (2 + y), log(1 + y) = 2 artanh(s) and
    y - 2 s = s y."""
    near = y < 0.5
    v = where(near, y, 0.0)
    s = v / (2.0 + v)
    square, series = s * s, torch.zeros_like(s)
    for k in range(12 if y.dtype == torch.float64 else 5, 0, -1):
        series = (series + 1.0 / (2 * k + 1)) * square
    return torch.where(near, s * (v - 2.0 * series), y - torch.log1p(y))


def scaled_log1p(n: Tensor, w: Tensor, product: Tensor) -> Tensor:
    """n log(1 + w), with ``product`` = n w. For small w it is the product minus a small remainder,
    so that no large terms cancel in its derivative by n."""
    near = w < 0.5
    small = product - n * log1p_shortfall(where(near, w, 0.0))
    return torch.where(near, small, n * torch.log1p(w))


def stirling(a: Tensor) -> Tensor:
    """log Gamma(a) - [(a - 1/2) log a - a + log(2 pi) / 2], for a >= 1, computed in float64."""
    wide = a.double()
    small = wide < 12.0
    low = where(small, wide, 1.0)
    direct = torch.lgamma(low) - ((low - 0.5) * torch.log(low) - low + HALF_LOG_2PI)
    t = 1.0 / where(~small, wide, 12.0)
    square, series = t * t, torch.zeros_like(t)
    for c in reversed(_STIRLING):
        series = series * square + c
    return torch.where(small, direct, series * t).to(a.dtype)


def half_step(a: Tensor) -> Tensor:
    """log Gamma(a + 1/2) - log Gamma(a) - log(a) / 2, for a >= 1."""
    return (stirling(a + 0.5) - stirling(a)) - a * log1p_shortfall(0.5 / a)
