"""Laplace, by the logarithm of its scale or by the scale: a density in x.

-log p = |x - loc| / scale + log(2 scale), in nats. Its derivative by loc is 0 at x = loc.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast.likelihoods import gaussian
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, uniform
from vae_fast.likelihoods.truth import elementwise

mean = gaussian.mean


def terms(loc: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    loc, log_scale, target = as_floats(loc, log_scale, target=target)
    return (target - loc).abs() * torch.exp(-log_scale) + (log_scale + math.log(2.0))


def terms_by_scale(loc: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    loc, scale, target = as_floats(loc, scale, target=target)
    return (target - loc).abs() / scale + (torch.log(scale) + math.log(2.0))


def sample(loc: Tensor, log_scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return sample_by_scale(loc, torch.exp(log_scale), generator)


def sample_by_scale(loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    loc, scale = torch.broadcast_tensors(loc, scale)
    u = uniform(loc, generator) - 0.5
    noise = -scale * torch.sign(u) * torch.log1p(-2.0 * u.abs())
    return (loc + noise).to(loc.dtype)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """The Gaussian's inputs, with some targets equal to loc."""
    (loc, log_scale), target = gaussian.inputs(shape, dtype, generator)
    at = torch.rand(tuple(shape), generator=generator, device=generator.device) < 0.05
    return [loc, log_scale], torch.where(at, loc, target)


def inputs_by_scale(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (loc, log_scale), target = inputs(shape, dtype, generator)
    return [loc, torch.exp(log_scale)], target


def truth(loc: Tensor, log_scale: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, m, s, x: -mp.log(mp.exp(-abs(x - m) / mp.exp(s)) / (2 * mp.exp(s))),
        loc,
        log_scale,
        target,
    )


def truth_by_scale(loc: Tensor, scale: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, m, s, x: -mp.log(mp.exp(-abs(x - m) / s) / (2 * s)), loc, scale, target
    )


LAPLACE = Spec("laplace", ("loc", "log_scale"), "real", terms, mean, sample, inputs, truth)
LAPLACE_SCALE = Spec(
    "laplace_scale",
    ("loc", "scale"),
    "real",
    terms_by_scale,
    mean,
    sample_by_scale,
    inputs_by_scale,
    truth_by_scale,
)
SPECS = (LAPLACE, LAPLACE_SCALE)
