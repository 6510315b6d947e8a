"""Lossy compression: codes rounded to a grid, their bits counted, and data made from them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.evaluate.latents import features
from vae_fast.tasks.latent import decode


class Compressed(NamedTuple):
    """``symbols``: codes in units of ``step``, int16 (N, latent_dim); ``bits``: of each sample,
    (N,), what an ideal entropy coder needs for them under the prior.
    """

    symbols: Tensor
    step: float
    bits: Tensor


def compress(
    model: nn.Module, x: Tensor, y: Tensor | None = None, *, step: float = 0.25
) -> Compressed:
    """Round each sample's code to multiples of ``step``.

    A symbol s costs -log2 P(s), P the mass that N(0, 1) has within half a step of s * step;
    conditions y are not counted. An autoencoder has no such prior: there, P is N(0, s^2) with
    each dimension's own scale over x, which is counted as known.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    codes = features(model, x, y).double()
    symbols = (codes / step).round()
    if symbols.abs().max() > torch.iinfo(torch.int16).max:
        raise ValueError(
            f"a code of {codes.abs().max():.3g} doesn't fit 16 bits at step {step}: take a larger one"
        )
    scale = torch.ones(codes.shape[1], dtype=codes.dtype, device=codes.device)
    if not getattr(model, "is_probabilistic", True):
        scale = codes.square().mean(0).sqrt().clamp_min(step)
    centre = (symbols * step / scale).abs()  # |.|, for the tail's small masses to keep their digits
    half = 0.5 * step / scale
    mass = 0.5 * (
        torch.erfc((centre - half) / math.sqrt(2.0)) - torch.erfc((centre + half) / math.sqrt(2.0))
    )
    bits = -torch.log2(mass.clamp_min(torch.finfo(mass.dtype).tiny)).sum(1)
    return Compressed(symbols.to(torch.int16), step, bits)


def decompress(model: nn.Module, compressed: Compressed, y: Tensor | None = None) -> Tensor:
    """E[x | z] at the rounded codes, (N, *input_shape)."""
    dtype = next(model.parameters()).dtype
    return decode(model, compressed.symbols.to(dtype) * compressed.step, y)
