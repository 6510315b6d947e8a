"""Gaussian, by the logarithm of its scale or by the scale: a density in x.

-log p = (x - loc)^2 / (2 scale^2) + log scale + log(2 pi) / 2, in nats (Kingma & Welling 2014,
appendix C.2). The scale is the standard deviation; its logarithm is half the log-variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, normals
from vae_fast.likelihoods.truth import elementwise

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def terms(loc: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    loc, log_scale, target = as_floats(loc, log_scale, target=target)
    scaled = (target - loc) * torch.exp(-log_scale)
    return 0.5 * scaled * scaled + (log_scale + _HALF_LOG_2PI)


def terms_by_scale(loc: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    loc, scale, target = as_floats(loc, scale, target=target)
    scaled = (target - loc) / scale
    return 0.5 * scaled * scaled + (torch.log(scale) + _HALF_LOG_2PI)


def mean(loc: Tensor, scale: Tensor) -> Tensor:
    return torch.broadcast_tensors(loc, scale)[0]


def sample(loc: Tensor, log_scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return sample_by_scale(loc, torch.exp(log_scale), generator)


def sample_by_scale(loc: Tensor, scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    loc, scale = torch.broadcast_tensors(loc, scale)
    eps = torch.randn(loc.shape, generator=generator, device=loc.device, dtype=loc.dtype)
    return loc + scale * eps


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Scales from 0.01 to 20; most targets are near their loc, some 100 scales away."""
    loc, log_scale = normals(shape, generator), draw(shape, generator, -4.5, 3.0)
    far = torch.where(draw(shape, generator, 0, 1) < 0.1, 100.0, 1.0)
    target = loc + far * torch.exp(log_scale) * normals(shape, generator)
    return [loc.to(dtype), log_scale.to(dtype)], target.to(dtype)


def inputs_by_scale(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (loc, log_scale), target = inputs(shape, torch.float64, generator)
    return [loc.to(dtype), torch.exp(log_scale).to(dtype)], target.to(dtype)


def truth(loc: Tensor, log_scale: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, m, s, x: -mp.log(mp.npdf(x, m, mp.exp(s))), loc, log_scale, target
    )


def truth_by_scale(loc: Tensor, scale: Tensor, target: Tensor) -> Truth:
    return elementwise(lambda mp, m, s, x: -mp.log(mp.npdf(x, m, s)), loc, scale, target)


GAUSSIAN = Spec("gaussian", ("loc", "log_scale"), "real", terms, mean, sample, inputs, truth)
GAUSSIAN_SCALE = Spec(
    "gaussian_scale",
    ("loc", "scale"),
    "real",
    terms_by_scale,
    mean,
    sample_by_scale,
    inputs_by_scale,
    truth_by_scale,
)
SPECS = (GAUSSIAN, GAUSSIAN_SCALE)
