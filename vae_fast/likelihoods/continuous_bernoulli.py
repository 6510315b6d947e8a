"""The continuous Bernoulli (Loaiza-Ganem & Cunningham 2019): a density on [0, 1].

-log p = softplus(l) - x l - log C(l), in nats, with logits l. C = l / tanh(l / 2) normalises the
Bernoulli's terms to a density of grey values. At l = 0 it is uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods.functions import where
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, uniform, widened
from vae_fast.likelihoods.truth import elementwise

# Coefficients of log(sinh(l / 2) / (l / 2)) in powers of l^2, from l^2: B_2n / (2n (2n)!).
_LOG_SINHC = (
    0.041666666666666664,
    -0.00034722222222222224,
    5.5114638447971785e-06,
    -1.0333994708994709e-07,
    2.08767569878681e-09,
    -4.4034917822395777e-11,
    9.5589546647747697e-13,
    -2.1185501852016142e-14,
    4.770034475709914e-16,
    -1.0874343492790309e-17,
)


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mask of logits for the series, the logits there, and |logits| elsewhere."""
    small = logits.abs() < 1.0
    return small, where(small, logits, 0.0), where(~small, logits.abs(), 1.0)


def terms(logits: Tensor, target: Tensor) -> Tensor:
    logits, target = as_floats(logits, target=target)
    small, near, far = _split(logits)
    square, series = near * near, torch.zeros_like(near)
    for c in reversed(_LOG_SINHC):
        series = series * square + c
    wrong = torch.where(logits >= 0, 1.0 - target, target)
    large = far * wrong + torch.log(-torch.expm1(-far) / far)
    return torch.where(small, near * (0.5 - target) + square * series, large)


def mean(logits: Tensor) -> Tensor:
    """E[x] = 1 / (1 - exp(-l)) - 1 / l."""
    (l,) = widened(logits)
    small, near, far = _split(l)
    square, series = near * near, torch.zeros_like(near)
    for k in reversed(range(len(_LOG_SINHC))):
        series = series * square + 2 * (k + 1) * _LOG_SINHC[k]
    large = -1.0 / torch.expm1(-far) - 1.0 / far
    value = torch.where(small, 0.5 + near * series, torch.where(l >= 0, large, 1.0 - large))
    return value.to(logits.dtype)


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Inverse transform sampling: x = log(1 + u (e^l - 1)) / l for l < 0."""
    u = uniform(logits, generator)
    y = logits.abs().to(u.dtype)
    small = y < 1e-4
    far = where(~small, y, 1.0)
    x = torch.where(small, u, -torch.log1p(u * torch.expm1(-far)) / far)
    return torch.where(logits >= 0, 1.0 - x, x).clamp(0.0, 1.0).to(logits.dtype)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Logits in [-10, 10], some near 0 and some up to 1e4; targets include 0 and 1."""
    logits = draw(shape, generator, -10.0, 10.0)
    kind = draw(shape, generator, 0, 1)
    logits = torch.where(kind < 0.2, logits * 1e-4, logits)
    logits = torch.where(kind > 0.9, logits * 1e3, logits)
    target = draw(shape, generator, -0.2, 1.2).clamp(0, 1)
    return [logits.to(dtype)], target.to(dtype)


def truth(logits: Tensor, target: Tensor) -> Truth:
    def nll(mp: Any, l: Any, x: Any) -> Any:
        if l == 0:
            return mp.mpf(0)
        return -l * x + mp.log(mp.expm1(l) / l)  # the density is e^(l x) l / (e^l - 1)

    return elementwise(nll, logits, target)


SPECS = (Spec("continuous_bernoulli", ("logits",), "unit", terms, mean, sample, inputs, truth),)
