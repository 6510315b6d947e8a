"""Information in the latent units: KL per dimension and active units."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count, check_finite
from vae_fast.models.interface import Model
from vae_fast.tasks.batched import in_batches, needs_density


def kl_per_dimension(
    model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256
) -> Tensor:
    """The data's mean KL(q(z | x) || p(z)) in each latent dimension, (latent_dim,), in nats."""
    needs_density(model, "the KL")

    def summed(part: Tensor, *condition: Tensor) -> Tensor:
        return (model.kl_per_dimension(part, *condition) * len(part)).unsqueeze(0)

    return in_batches(model, summed, x, y, batch_size=batch_size).sum(0) / len(x)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """The number of dimensions of the posterior means (N, D) whose variance over the data exceeds
    ``threshold``.

    Burda et al. 2015, section 5.2: a unit is active if Var_x(E[z | x]) > 0.01.
    """
    if means.dim() != 2 or len(means) < 2:
        raise ValueError(f"means must be (N, D) with N of 2 or more, got {tuple(means.shape)}")
    check_finite("means", means)
    return int((means.double().var(0) > threshold).sum())


def mutual_information_bins(values: Tensor, bins: int = 20) -> Tensor:
    """Each column of (N, D) cut into equal-width bins: integers in [0, bins), (N, D)."""
    check_count("bins", bins, 2)
    low, high = values.min(0).values, values.max(0).values
    width = (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return ((values - low) / width * bins).long().clamp_(0, bins - 1)
