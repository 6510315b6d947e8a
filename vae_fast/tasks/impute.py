"""Missing values filled in: inpainting is imputation of pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import Model, condition_of
from vae_fast.models.likelihoods import Likelihood
from vae_fast.networks import device_and_dtype
from vae_fast.tasks.batched import evaluating


class Imputed(NamedTuple):
    """``mean``: known values unchanged, and the chains' average E[x | z] for missing ones. ``std``:
    the standard deviation over the chains' last values, 0 for known ones.

    Both are (N, *input_shape), on the scale of the model's outputs: images in [0, 1], columns and
    counts in their own units.
    """

    mean: Tensor
    std: Tensor


def impute(
    model: Model,
    x: Tensor,
    known: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 20,
    draws: int = 10,
    from_means: bool = True,
    batch_size: int = 64,
) -> Imputed:
    """Fill in x where ``known`` is False, by iterated conditional sampling.

    Starting from noise in the gaps, this repeats z ~ q(z | x) and then x ~ p(x | z) in the gaps.
    This Markov chain's draws approach p(missing | known) as q approaches the posterior (Rezende et
    al. 2014, section 5.4 and appendix F; Mattei & Frellsen 2018 on its bias).

    Args:
        x: (N, *input_shape); its values in the gaps are ignored.
        known: bool, of x's shape, or broadcast to it.
        steps: steps of each chain. draws: number of chains; their spread is the uncertainty.
        from_means: fill the gaps with E[x | z] instead of draws. The result is smoother, and suits
            grey images under a Bernoulli likelihood. The chains then spread less than p(missing |
            known): ``std`` contains only the uncertainty of z.
    """
    for name, count in (("steps", steps), ("draws", draws), ("batch_size", batch_size)):
        check_count(name, count)
    if known.dtype != torch.bool:
        raise TypeError(f"known must be bool, True where x is known, got {known.dtype}")
    try:
        known = known.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"known has shape {tuple(known.shape)}, which does not broadcast to x's "
            f"{tuple(x.shape)}"
        ) from None

    device = device_and_dtype(model)[0]
    means, spreads = [], []
    with evaluating(model):
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            mask = known[part].to(device)
            # Unknown values may be anything, also NaN.
            seen = torch.where(mask, x[part].to(device), torch.zeros_like(x[part], device=device))
            values = torch.where(mask, model.values(seen), model.likelihood.center)
            label = None if y is None else y[part].to(device)
            condition = condition_of(model, values, label)
            expected, drawn = _chains(
                model, values, mask, condition, steps, draws, x.dtype, from_means
            )
            spread = drawn.std(0, correction=0)
            means.append(torch.where(mask, values, expected.mean(0)).to(x.device))
            spreads.append(torch.where(mask, 0.0, spread).to(x.device))
    if not means:
        return Imputed(torch.zeros(x.shape), torch.zeros(x.shape))
    return Imputed(torch.cat(means), torch.cat(spreads))


def _chains(
    model: Model,
    values: Tensor,
    mask: Tensor,
    condition: tuple[Tensor, ...],
    steps: int,
    draws: int,
    dtype: torch.dtype,
    from_means: bool,
) -> tuple[Tensor, Tensor]:
    """E[x | z] at the last z of ``draws`` chains, and their last x; both (draws, N,
    *input_shape)."""
    values, mask, *repeated = (
        t.repeat(draws, *[1] * (t.dim() - 1)) for t in (values, mask, *condition)
    )
    expected = filled = torch.where(mask, values, _start(values, model.likelihood))
    for _ in range(steps):
        params = model.decode(model.sample_posterior(filled, *repeated), *repeated)
        expected = model.as_values(model.likelihood.mean(params), dtype)
        drawn = expected
        if not from_means:
            drawn = model.as_values(model.likelihood.sample(params), dtype)
        filled = torch.where(mask, values, drawn)
    return expected.unflatten(0, (draws, -1)), filled.unflatten(0, (draws, -1))


def _start(values: Tensor, likelihood: Likelihood) -> Tensor:
    """Initial values of the gaps: noise in [0, 1], or noise in the range of each column."""
    if isinstance(likelihood.spread, Tensor):
        return likelihood.center + likelihood.spread * torch.randn_like(values)
    return torch.rand_like(values)
