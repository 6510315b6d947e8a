"""Latents as data: each sample's posterior, and the factor that scales latents to unit variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.models.interface import Model, latent_shape
from vae_fast.tasks.batched import in_batches, needs_density


class LatentStatistics(NamedTuple):
    """Posteriors of N samples, for training on draws from them, with statistics of the draws.

    mean, std: q(z | x) of each sample, (N, latent_dim), or (N, C, h, w) if z is a map.
    scaling_factor: 1 / the standard deviation of z ~ q(z | x) over samples, dimensions and draws:
        z times this has variance 1, as latent diffusion needs it (Rombach et al. 2022, appendix G).
    channel_mean, channel_std: mean and standard deviation of z, for each latent dimension or
    channel.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    channel_mean: Tensor
    channel_std: Tensor


def statistics(
    model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256
) -> LatentStatistics:
    """The posteriors of ``x`` and the latents' scaling factor, as ``LatentStatistics``.

    Raises:
        ValueError: no samples.
        TypeError: a model without a posterior's density.
    """
    needs_density(model, "the latents' statistics")
    if len(x) == 0:
        raise ValueError("x has no samples, and statistics are taken over samples")

    def moments(part: Tensor, *condition: Tensor) -> Tensor:
        mu, logvar = model.encode(part, *condition)[:2]
        return torch.stack([mu, torch.exp(0.5 * logvar)], 1)

    mean, std = in_batches(model, moments, x, y, batch_size=batch_size).unbind(1)
    shape = latent_shape(model)
    if shape is not None:
        mean, std = mean.unflatten(1, shape), std.unflatten(1, shape)
    others = (0, *range(2, mean.dim()))
    wide, spread = mean.double(), std.double().square()
    # The variance of a draw is the variance of the means plus the mean of the variances.
    variance = wide.var(correction=0) + spread.mean()
    of_channels = wide.var(others, correction=0) + spread.mean(others)
    return LatentStatistics(
        mean,
        std,
        float(variance.rsqrt()),
        wide.mean(others).to(mean.dtype),
        of_channels.sqrt().to(mean.dtype),
    )
