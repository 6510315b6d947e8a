"""Poisson, by its rate or by the rate's logarithm: a probability of counts.

-log p = rate - x log(rate) + log Gamma(x + 1), in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods.functions import HALF_LOG_2PI, stirling, where
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, widened
from vae_fast.likelihoods.truth import elementwise


def _counted(rate: Tensor, log_rate: Tensor | None, x: Tensor) -> Tensor:
    """log Gamma(x + 1) - x log(rate), for x > 0, by Stirling's formula. If x + 1 is near the rate,
    log1p of their relative difference gives log((x + 1) / rate)."""
    more = x + 1.0
    off = (x - rate) + 1.0
    near = off.abs() < 0.5 * rate
    ratio = where(near, off, 0.0) / where(near, rate, 1.0)
    apart = torch.log(more) - (torch.log(rate) if log_rate is None else log_rate)
    log_ratio = torch.where(near, torch.log1p(ratio), apart)
    return (x * log_ratio - more) + (0.5 * torch.log(more) + stirling(more) + HALF_LOG_2PI)


def terms(rate: Tensor, target: Tensor) -> Tensor:
    rate, x = torch.broadcast_tensors(*as_floats(rate, target=target))
    some = ~(x == 0)
    counted = _counted(where(some, rate, 1.0), None, where(some, x, 1.0))
    return rate + torch.where(some, counted, torch.zeros_like(x))


def terms_by_log(log_rate: Tensor, target: Tensor) -> Tensor:
    log_rate, x = torch.broadcast_tensors(*as_floats(log_rate, target=target))
    some = ~(x == 0)
    counted = _counted(torch.exp(log_rate.clamp(-60, 60)), log_rate, where(some, x, 1.0))
    return torch.exp(log_rate) + torch.where(some, counted, torch.zeros_like(x))


def mean(rate: Tensor) -> Tensor:
    return rate


def mean_by_log(log_rate: Tensor) -> Tensor:
    return torch.exp(log_rate)


def sample(rate: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.poisson(widened(rate)[0], generator=generator).to(rate.dtype)


def sample_by_log(log_rate: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return sample(torch.exp(log_rate), generator)


def counts(rate: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Targets for rates in float64: half are 0, the others near the rate or far from it, up to
    1e6."""
    u = draw(rate.shape, generator, 0, 1)
    near = torch.poisson(rate, generator=generator)
    far = torch.floor(10.0 ** draw(rate.shape, generator, 0.0, 6.0))
    x = torch.where(u < 0.5, 0.0, torch.where(u < 0.9, near, far))
    return x.to(torch.float64 if dtype == torch.float64 else torch.float32)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Rates from 1e-3 to 1e4, within float16's range."""
    rate = (10.0 ** draw(shape, generator, -3.0, 4.0)).to(dtype)
    return [rate], counts(rate.double(), dtype, generator)


def inputs_by_log(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (rate,), target = inputs(shape, dtype, generator)
    return [torch.log(rate)], target


def _nll(mp: Any, rate: Any, x: Any) -> Any:
    return rate + mp.loggamma(x + 1) - (x * mp.log(rate) if x != 0 else 0)


def truth(rate: Tensor, target: Tensor) -> Truth:
    return elementwise(_nll, rate, target)


def truth_by_log(log_rate: Tensor, target: Tensor) -> Truth:
    return elementwise(lambda mp, l, x: _nll(mp, mp.exp(l), x), log_rate, target)


SPECS = (
    Spec("poisson", ("rate",), "count", terms, mean, sample, inputs, truth),
    Spec(
        "poisson_log",
        ("log_rate",),
        "count",
        terms_by_log,
        mean_by_log,
        sample_by_log,
        inputs_by_log,
        truth_by_log,
    ),
)
