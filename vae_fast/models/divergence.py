"""KL divergences of diagonal Gaussians by latent dimension, and free bits. All are in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast.functional import gaussian_kl
from vae_fast.joined import is_split, joined_mean
from vae_fast.models.gaussian import Posterior
from vae_fast.types import Reduction


def kl_by_dimension(q: Posterior, p: Posterior | None = None) -> Tensor:
    """KL(q || p) of each latent dimension, summed over the batch, (D,); p=None: N(0, 1).

    The transpose makes each latent dimension a sample of the op, and the batch its features.
    """
    prior = () if p is None else (p.mu.t(), p.logvar.t())
    return gaussian_kl(q.mu.t(), q.logvar.t(), *prior, reduction="none")


def free_bits_kl(
    q: Posterior, p: Posterior | None, free_bits: float, *, reduction: Reduction = "batchmean"
) -> Tensor:
    """sum_j max(free_bits, KL_j), where KL_j is the batch's mean KL of latent dimension j.

    Below ``free_bits`` (nats per dimension) the KL has no gradient, so the loss does not push that
    dimension to collapse (Kingma et al. 2016, IAF, equation 15). reduction="none" raises
    ValueError: the sum is defined on the batch.
    """
    n = q.mu.shape[0]
    return floored_kl(kl_by_dimension(q, p) / n, n, free_bits, reduction=reduction)


def floored_kl(mean_kl: Tensor, n: int, free_bits: float, *, reduction: Reduction) -> Tensor:
    """sum_j max(free_bits, mean_kl_j), times n for reduction="sum"."""
    if reduction == "none":
        raise ValueError("free_bits is defined on the batch's mean KL: use batchmean or sum")
    if not is_split():
        kl = torch.clamp_min(mean_kl, free_bits).sum()
    else:
        joined = joined_mean(mean_kl.detach())
        # The floor applies to the mean over all processes; each process has its part's gradient.
        own = torch.where(joined >= free_bits, mean_kl, mean_kl.detach())
        kl = (own + (joined.clamp_min(free_bits) - own.detach())).sum()
    return kl if reduction == "batchmean" else kl * n
