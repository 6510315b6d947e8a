"""Lossy compression: codes rounded to a grid, the number of their bits, and decoding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.functional.checks import check_finite
from vae_fast.models.interface import Model, is_probabilistic, learned_prior_of, part_of
from vae_fast.tasks.batched import in_batches
from vae_fast.tasks.encode import features
from vae_fast.tasks.latent import decode


class Compressed(NamedTuple):
    """``symbols``: codes in units of ``step``, int16 (N, latent_dim). ``bits``: (N,), the bits that
    an ideal entropy coder needs for each sample under the prior.
    """

    symbols: Tensor
    step: float
    bits: Tensor


def compress(model: Model, x: Tensor, y: Tensor | None = None, *, step: float = 0.25) -> Compressed:
    """Round each sample's code to multiples of ``step``.

    A symbol s costs -log2 P(s), where P is the prior's mass, under N(0, 1) or p(z | y), within half
    a step of s * step. Conditions y are not counted. An autoencoder has no such prior: P then is
    N(0, s^2) with each dimension's scale over x, which is assumed known. In a hierarchy a level's
    prior depends on the levels above; P then is N(0, 1).
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step must be positive and finite, got {step}")
    codes = features(model, x, y).double()
    check_finite("codes", codes)
    symbols = (codes / step).round()
    if symbols.abs().max() > torch.iinfo(torch.int16).max:
        raise ValueError(
            f"a code of {codes.abs().max():.3g} doesn't fit 16 bits at step {step}: take a larger one"
        )
    mean, scale = _prior(model, x, y, codes, step)
    # |.|, so that small masses of the tail keep their digits
    centre = ((symbols * step - mean) / scale).abs()
    half = 0.5 * step / scale
    mass = 0.5 * (
        torch.erfc((centre - half) / math.sqrt(2.0)) - torch.erfc((centre + half) / math.sqrt(2.0))
    )
    bits = -torch.log2(mass.clamp_min(torch.finfo(mass.dtype).tiny)).sum(1)
    return Compressed(symbols.to(torch.int16), step, bits)


def decompress(model: Model, compressed: Compressed, y: Tensor | None = None) -> Tensor:
    """E[x | z] at the rounded codes, (N, *input_shape)."""
    dtype = next(model.parameters()).dtype
    return decode(model, compressed.symbols.to(dtype) * compressed.step, y)


def _prior(
    model: Model, x: Tensor, y: Tensor | None, codes: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each code's prior, of codes' shape or broadcast to it."""
    mean, scale = codes.new_zeros(()), codes.new_ones(())
    if not is_probabilistic(model):
        return mean, codes.square().mean(0).sqrt().clamp_min(step)

    if learned_prior_of(model) is not None:
        raise ValueError(
            "codes are coded one by one under a Gaussian prior, and this model's prior is a "
            f"{type(model.learned_prior).__name__}: compress with a model whose prior is standard"
        )
    if part_of(model, "posterior") is not None:
        raise ValueError(
            "codes are coded one by one under a Gaussian prior, and this model's posterior is "
            f"{model.posterior.name}: compress with a model whose posterior is gaussian"
        )

    def of_condition(part: Tensor, *condition: Tensor) -> Tensor:
        p = model.prior(*condition)
        return torch.cat([p.mu, p.logvar], dim=1)

    if part_of(model, "prior_network") is not None:
        mu, logvar = in_batches(model, of_condition, x, y).double().chunk(2, dim=1)
        mean, scale = mu, torch.exp(0.5 * logvar)
    return mean, scale
