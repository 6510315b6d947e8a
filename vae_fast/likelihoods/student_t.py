"""Student's t, by the logarithm of its scale or by the scale: a heavy-tailed density in x.

-log p = log scale + log(df pi) / 2 + log Gamma(df / 2) - log Gamma((df + 1) / 2)
         + (df + 1) / 2 log(1 + ((x - loc) / scale)^2 / df), in nats.
df > 0 is the degrees of freedom. Accurate from df near 0 to 1e8, where it equals the Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods.functions import HALF_LOG_2PI, half_step, scaled_log1p, where
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, normals, widened
from vae_fast.likelihoods.truth import elementwise


def _terms(z: Tensor, log_scale: Tensor, df: Tensor) -> Tensor:
    square = z * z
    w = square / df
    small = df < 1.0
    low, r = where(small, df, 1.0), 1.0 / (where(~small, df, 1.0) + 1.0)
    shift = torch.where(
        small, torch.log(low) + torch.log(low + 2.0) - 2.0 * torch.log1p(low), torch.log1p(-r * r)
    )
    gammas = half_step(0.5 * df + 1.0) + 0.5 * shift
    tail = 0.5 * (scaled_log1p(df, w, square) + torch.log1p(w))
    return tail + ((log_scale + HALF_LOG_2PI) - gammas)


def terms(loc: Tensor, log_scale: Tensor, df: Tensor, target: Tensor) -> Tensor:
    loc, log_scale, df, target = as_floats(loc, log_scale, df, target=target)
    return _terms((target - loc) * torch.exp(-log_scale), log_scale, df)


def terms_by_scale(loc: Tensor, scale: Tensor, df: Tensor, target: Tensor) -> Tensor:
    loc, scale, df, target = as_floats(loc, scale, df, target=target)
    return _terms((target - loc) / scale, torch.log(scale), df)


def mean(loc: Tensor, scale: Tensor, df: Tensor) -> Tensor:
    """loc. (For df <= 1 there is no mean; loc is the median.)"""
    return torch.broadcast_tensors(loc, scale, df)[0]


def sample(
    loc: Tensor, log_scale: Tensor, df: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    return sample_by_scale(loc, torch.exp(log_scale), df, generator)


def sample_by_scale(
    loc: Tensor, scale: Tensor, df: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    wide = widened(loc, scale, df)
    m, s, n = torch.broadcast_tensors(*wide)
    eps = torch.randn(m.shape, generator=generator, device=m.device, dtype=m.dtype)
    chi2 = 2.0 * torch._standard_gamma((0.5 * n).contiguous(), generator=generator)
    tiny = torch.finfo(m.dtype).tiny
    return (m + s * eps * torch.rsqrt((chi2 / n).clamp_min(tiny))).to(loc.dtype)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """df from 0.1 to 1e4, some up to 1e8; targets within a few scales, some 1e3 scales away."""
    loc, log_scale = normals(shape, generator), draw(shape, generator, -4.5, 3.0)
    power = draw(shape, generator, -1.0, 4.0)
    power = torch.where(draw(shape, generator, 0, 1) < 0.1, 2.0 * power, power)
    df = (10.0**power).clamp_max(torch.finfo(dtype).max)
    far = torch.where(draw(shape, generator, 0, 1) < 0.1, 300.0, 1.0)
    target = loc + far * torch.exp(log_scale) * normals(shape, generator)
    return [loc.to(dtype), log_scale.to(dtype), df.to(dtype)], target.to(dtype)


def inputs_by_scale(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (loc, log_scale, df), target = inputs(shape, dtype, generator)
    return [loc, torch.exp(log_scale), df], target


def _nll(mp: Any, m: Any, s: Any, n: Any, x: Any) -> Any:
    constant = mp.loggamma((n + 1) / 2) - mp.loggamma(n / 2) - mp.log(n * mp.pi * s**2) / 2
    return (n + 1) / 2 * mp.log1p(((x - m) / s) ** 2 / n) - constant


def truth(loc: Tensor, log_scale: Tensor, df: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, m, s, n, x: _nll(mp, m, mp.exp(s), n, x), loc, log_scale, df, target
    )


def truth_by_scale(loc: Tensor, scale: Tensor, df: Tensor, target: Tensor) -> Truth:
    return elementwise(_nll, loc, scale, df, target)


SPECS = (
    Spec("student_t", ("loc", "log_scale", "df"), "real", terms, mean, sample, inputs, truth),
    Spec(
        "student_t_scale",
        ("loc", "scale", "df"),
        "real",
        terms_by_scale,
        mean,
        sample_by_scale,
        inputs_by_scale,
        truth_by_scale,
    ),
)
