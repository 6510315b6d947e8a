"""The negative binomial and the zero-inflated one, as scvi-tools parametrises them.

With the mean m ("rate"), the inverse dispersion t ("dispersion") and e = 1e-8, in nats,

    -log p = t log((t + m + e) / (t + e)) + x log((t + m + e) / (m + e))
             + log Gamma(t) - log Gamma(x + t) + log Gamma(x + 1).

With log_rate as the parameter, x log_rate replaces x log(m + e), so that every rate has a gradient.
The zero-inflated one is 0 with probability sigmoid(zero_logits), and else negative binomial (Lopez
et al. 2018). Both are accurate for dispersions up to 1e8, where they approach the Poisson, and for
counts up to 1e6: large terms that cancel are subtracted analytically, as derived in
csrc/likelihoods/negative_binomial.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods import poisson
from vae_fast.likelihoods.functions import (
    HALF_LOG_2PI,
    log1p_shortfall,
    scaled_log1p,
    softplus,
    stirling,
    where,
)
from vae_fast.likelihoods.spec import Spec, Truth, as_floats, draw, normals, widened
from vae_fast.likelihoods.truth import elementwise, log1pexp

EPS = 1e-8


def _of_zero(rate: Tensor, dispersion: Tensor) -> Tensor:
    """-log p(0) = t log(1 + m / (t + e))."""
    floored = dispersion + EPS
    w = rate / floored
    near = w < 0.5
    small = rate * (1.0 - EPS / floored) - dispersion * log1p_shortfall(where(near, w, 0.0))
    return torch.where(near, small, dispersion * torch.log1p(w))


def _counted(rate: Tensor, log_rate: Tensor | None, t: Tensor, x: Tensor) -> Tensor:
    """-log p(x) + log p(0) for x > 0."""
    floored = rate + EPS if log_rate is None else rate
    total, a, more = (t + EPS) + rate, t + 1.0, x + 1.0
    both = a + x
    ahead = (x - rate) + (1.0 - EPS)
    # step = u - 1 for u = total more / (both floored); total / both - 1 = -ahead / both.
    step = (ahead / floored) * torch.where(t > more, 1.0 - more / both, t / both)
    if log_rate is not None:
        step = step + EPS / floored
    near = step.abs() < 0.5
    close = (ahead / both).abs() < 0.5
    log_total = torch.where(
        close, torch.log1p(-where(close, ahead / both, 0.0)), torch.log(total / both)
    )
    log_more = torch.log(more / floored) if log_rate is None else torch.log(more) - log_rate
    log_u = torch.where(near, torch.log1p(where(near, step, 0.0)), log_more + log_total)
    y = x / a
    small = t < 1e-3
    corrections = stirling(more) - (stirling(both) - stirling(a))
    return (
        (x * log_u - scaled_log1p(a, y, x))
        + 0.5 * (torch.log1p(y) + torch.log(more))
        + torch.where(
            small, torch.log(x + t) - torch.log(t), torch.log1p(x / where(~small, t, 1.0))
        )
        + (corrections + (HALF_LOG_2PI - 1.0))
    )


def _parts(
    rate: Tensor, log_rate: Tensor | None, dispersion: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(0), -log p(x) + log p(0), and a mask of x > 0."""
    some = ~(x == 0)
    held = rate if log_rate is None else torch.exp(log_rate.clamp(-60, 60))
    counted = _counted(
        where(some, held, 1.0),
        None if log_rate is None else log_rate,
        where(some, dispersion, 1.0),
        where(some, x, 1.0),
    )
    return _of_zero(rate, dispersion), counted, some


def _negative_binomial(
    rate: Tensor, log_rate: Tensor | None, dispersion: Tensor, x: Tensor
) -> Tensor:
    zero, counted, some = _parts(rate, log_rate, dispersion, x)
    return zero + torch.where(some, counted, torch.zeros_like(counted))


def terms(rate: Tensor, dispersion: Tensor, target: Tensor) -> Tensor:
    m, t, x = torch.broadcast_tensors(*as_floats(rate, dispersion, target=target))
    return _negative_binomial(m, None, t, x)


def terms_by_log(log_rate: Tensor, dispersion: Tensor, target: Tensor) -> Tensor:
    l, t, x = torch.broadcast_tensors(*as_floats(log_rate, dispersion, target=target))
    return _negative_binomial(torch.exp(l), l, t, x)


def _zero_inflated(
    rate: Tensor, log_rate: Tensor | None, dispersion: Tensor, logits: Tensor, x: Tensor
) -> Tensor:
    zero, counted, some = _parts(rate, log_rate, dispersion, x)
    # -log(sigmoid(l) + sigmoid(-l) exp(-zero)), by 1 - p if that is small.
    # (autograd derives sigmoid and expm1 from their results, which loses digits.)
    small = zero < 0.5
    lost = torch.where(small, -torch.expm1(-where(small, zero, 0.0)), 1.0 - torch.exp(-zero))
    lacking = torch.exp(-softplus(logits)) * lost
    near = lacking < 0.5
    inflated, counted_zero = -softplus(-logits), -softplus(logits) - zero
    # torch.logaddexp's second derivative overflows.
    apart = torch.maximum(inflated, counted_zero) + softplus(-(logits + zero).abs())
    of_zero = -torch.where(near, torch.log1p(-where(near, lacking, 0.0)), apart)
    return torch.where(some, softplus(logits) + (zero + counted), of_zero)


def zero_inflated_terms(
    rate: Tensor, dispersion: Tensor, zero_logits: Tensor, target: Tensor
) -> Tensor:
    numbers = as_floats(rate, dispersion, zero_logits, target=target)
    m, t, logits, x = torch.broadcast_tensors(*numbers)
    return _zero_inflated(m, None, t, logits, x)


def zero_inflated_terms_by_log(
    log_rate: Tensor, dispersion: Tensor, zero_logits: Tensor, target: Tensor
) -> Tensor:
    numbers = as_floats(log_rate, dispersion, zero_logits, target=target)
    l, t, logits, x = torch.broadcast_tensors(*numbers)
    return _zero_inflated(torch.exp(l), l, t, logits, x)


def mean(rate: Tensor, dispersion: Tensor) -> Tensor:
    return torch.broadcast_tensors(rate, dispersion)[0]


def mean_by_log(log_rate: Tensor, dispersion: Tensor) -> Tensor:
    return mean(torch.exp(log_rate), dispersion)


def zero_inflated_mean(rate: Tensor, dispersion: Tensor, zero_logits: Tensor) -> Tensor:
    return mean(rate, dispersion) * torch.sigmoid(-zero_logits)


def zero_inflated_mean_by_log(log_rate: Tensor, dispersion: Tensor, zero_logits: Tensor) -> Tensor:
    return zero_inflated_mean(torch.exp(log_rate), dispersion, zero_logits)


def sample(rate: Tensor, dispersion: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A Poisson with a Gamma-distributed rate, of mean m and shape t."""
    m, t = torch.broadcast_tensors(*widened(rate, dispersion))
    gamma = torch._standard_gamma(t.contiguous(), generator=generator)
    return torch.poisson(gamma * m / (t + EPS), generator=generator).to(rate.dtype)


def sample_by_log(
    log_rate: Tensor, dispersion: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    return sample(torch.exp(log_rate), dispersion, generator)


def zero_inflated_sample(
    rate: Tensor,
    dispersion: Tensor,
    zero_logits: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    rate, dispersion, zero_logits = torch.broadcast_tensors(rate, dispersion, zero_logits)
    kept = torch.bernoulli(torch.sigmoid(-zero_logits), generator=generator)
    return sample(rate, dispersion, generator) * kept.to(rate.dtype)


def zero_inflated_sample_by_log(
    log_rate: Tensor,
    dispersion: Tensor,
    zero_logits: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    return zero_inflated_sample(torch.exp(log_rate), dispersion, zero_logits, generator)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Rates from 1e-3 to 1e4; dispersions from 1e-2 to 1e4, some up to 1e8; counts up to 1e6."""
    rate = (10.0 ** draw(shape, generator, -3.0, 4.0)).to(dtype)
    power = draw(shape, generator, -2.0, 4.0)
    power = torch.where(draw(shape, generator, 0, 1) < 0.2, 2.0 * power.abs(), power)
    dispersion = (10.0**power).clamp_max(torch.finfo(dtype).max).to(dtype)
    return [rate, dispersion], poisson.counts(rate.double(), dtype, generator)


def inputs_by_log(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (rate, dispersion), target = inputs(shape, dtype, generator)
    return [torch.log(rate), dispersion], target


def zero_inflated_inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """The negative binomial's inputs, with zero logits in [-10, 10] and some up to 1000."""
    params, target = inputs(shape, dtype, generator)
    logits = 3.0 * normals(shape, generator)
    logits = torch.where(draw(shape, generator, 0, 1) < 0.05, 100.0 * logits, logits)
    return [*params, logits.to(dtype)], target


def zero_inflated_inputs_by_log(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    (rate, *rest), target = zero_inflated_inputs(shape, dtype, generator)
    return [torch.log(rate), *rest], target


def _nll(mp: Any, m: Any, t: Any, x: Any, log_rate: Any = None) -> Any:
    e = mp.mpf(EPS)
    both = mp.log(t + m + e)
    gammas = mp.loggamma(x + t) - mp.loggamma(t) - mp.loggamma(x + 1)
    log_rate = mp.log(m + e) if log_rate is None else log_rate
    return -(t * (mp.log(t + e) - both) + x * (log_rate - both) + gammas)


def _zero_inflated_nll(mp: Any, m: Any, t: Any, logit: Any, x: Any, log_rate: Any = None) -> Any:
    nll = _nll(mp, m, t, x, log_rate)
    if x > 0:
        return nll + log1pexp(mp, logit)
    # 1 - p may be far below 1e-50.
    lacking = -mp.expm1(-nll) / (1 + mp.exp(logit))
    return -mp.log1p(-lacking) if lacking < 0.5 else _log_sum(mp, nll, logit)


def _log_sum(mp: Any, nll: Any, logit: Any) -> Any:
    return -mp.log((mp.exp(logit) + mp.exp(-nll)) / (1 + mp.exp(logit)))


def truth(rate: Tensor, dispersion: Tensor, target: Tensor) -> Truth:
    return elementwise(_nll, rate, dispersion, target)


def truth_by_log(log_rate: Tensor, dispersion: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, l, t, x: _nll(mp, mp.exp(l), t, x, l), log_rate, dispersion, target
    )


def zero_inflated_truth(
    rate: Tensor, dispersion: Tensor, zero_logits: Tensor, target: Tensor
) -> Truth:
    return elementwise(_zero_inflated_nll, rate, dispersion, zero_logits, target)


def zero_inflated_truth_by_log(
    log_rate: Tensor, dispersion: Tensor, zero_logits: Tensor, target: Tensor
) -> Truth:
    return elementwise(
        lambda mp, l, t, logit, x: _zero_inflated_nll(mp, mp.exp(l), t, logit, x, l),
        log_rate,
        dispersion,
        zero_logits,
        target,
    )


SPECS = (
    Spec("negative_binomial", ("rate", "dispersion"), "count", terms, mean, sample, inputs, truth),
    Spec(
        "negative_binomial_log",
        ("log_rate", "dispersion"),
        "count",
        terms_by_log,
        mean_by_log,
        sample_by_log,
        inputs_by_log,
        truth_by_log,
    ),
    Spec(
        "zero_inflated_negative_binomial",
        ("rate", "dispersion", "zero_logits"),
        "count",
        zero_inflated_terms,
        zero_inflated_mean,
        zero_inflated_sample,
        zero_inflated_inputs,
        zero_inflated_truth,
    ),
    Spec(
        "zero_inflated_negative_binomial_log",
        ("log_rate", "dispersion", "zero_logits"),
        "count",
        zero_inflated_terms_by_log,
        zero_inflated_mean_by_log,
        zero_inflated_sample_by_log,
        zero_inflated_inputs_by_log,
        zero_inflated_truth_by_log,
    ),
)
