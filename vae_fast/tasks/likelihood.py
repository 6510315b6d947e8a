"""How well a model explains data: the ELBO and its parts, and importance-sampled NLL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import Model
from vae_fast.tasks.batched import in_batches, needs_density
from vae_fast.types import LossOutput


def elbo(model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256) -> LossOutput:
    """The negative ELBO of each sample and its parts, each (N,), in nats, one z per sample.

    Also for a model trained on another bound, such as the IWAE, this is the ELBO of its posterior.
    """
    needs_density(model, "the ELBO")

    def terms(part: Tensor, *condition: Tensor) -> Tensor:
        samples = model.weighted_samples(part, *condition, num_samples=1)
        recon = samples.nll[0]
        return torch.stack([recon + samples.kl, recon, samples.kl], dim=1)

    return LossOutput(*in_batches(model, terms, x, y, batch_size=batch_size).unbind(1))


def importance_nll(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_samples: int = 100,
    batch_size: int = 256,
    samples_at_once: int = 10,
) -> Tensor:
    """-log p(x) of each sample, (N,), in nats: -log (1/K) sum_k w_k (Burda et al. 2015).

    An upper bound in expectation, tighter for larger K = ``num_samples``. Memory is limited to
    ``batch_size * samples_at_once`` decoded samples for any K.
    """
    needs_density(model, "importance-sampled NLL")
    check_count("num_samples", num_samples)
    check_count("samples_at_once", samples_at_once)

    def nll(part: Tensor, *condition: Tensor) -> Tensor:
        total: Tensor | None = None
        for done in range(0, num_samples, samples_at_once):
            k = min(samples_at_once, num_samples - done)
            weights = model.weighted_samples(part, *condition, num_samples=k).log_weight
            partial = torch.logsumexp(weights, 0)
            total = partial if total is None else torch.logaddexp(total, partial)
        assert total is not None  # num_samples is at least 1
        return math.log(num_samples) - total

    return in_batches(model, nll, x, y, batch_size=batch_size)


def bits_per_dimension(
    nats: Tensor | float, dimensions: float, *, levels: int | None = None
) -> Tensor | float:
    """Nats per sample to bits per dimension.

    Args:
        dimensions: values per sample, on average if samples differ in length.
        levels: for a density over values scaled to [0, 1], how many levels the data have (256 for
            8-bit images, k / 255): the levels' distance adds log2(levels - 1) bits. None for
            discrete likelihoods.
    """
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, got {dimensions}")
    if levels is not None:
        check_count("levels", levels, 2)
    of_cells = 0.0 if levels is None else math.log2(levels - 1)
    return nats / (dimensions * math.log(2.0)) + of_cells


def reconstruction_error(
    model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256
) -> Tensor:
    """The mean squared error of each sample's reconstruction, (N,), on the scale of [0, 1]."""
    return in_batches(model, model.squared_error, x, y, batch_size=batch_size)
