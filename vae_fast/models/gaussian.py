"""Diagonal Gaussians: q(z | x) from an encoder's output, draws of it, and log-densities in nats."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """q(z | x) = N(mu, exp(logvar)), diagonal; both (N, latent_dim)."""

    mu: Tensor
    logvar: Tensor

    def flat(self) -> Posterior:
        """The same with maps (N, ...) flattened to vectors (N, D)."""
        return Posterior(self.mu.flatten(1), self.logvar.flatten(1))


class Contextual(Posterior):
    """A Gaussian and ``context``, (N, C): the features that condition a flow applied to it."""

    context: Tensor


class Draw(NamedTuple):
    """One z ~ q(z | x) of each sample: ``q``, ``z`` (N, latent_dim) and ``kl`` (N,), in nats.

    ``kl`` is KL(q || p) if it has a closed form, else log q(z | x) - log p(z)."""

    q: Posterior
    z: Tensor
    kl: Tensor


class WeightedSamples(NamedTuple):
    """K samples of z for each x, with their importance weights w = p(x, z) / q(z | x).

    log (1/K) sum_k w_k, ``log_mean_exp(log_weight, 0)``, is at most log p(x) in expectation (Burda
    et al. 2015, equation 8). Its gradient weights each sample's by the normalised weight, as in
    equation 14.

    ``log_weight``: (K, N); ``nll``: -log p(x | z), (K, N); ``kl``: the ELBO's KL(q(z | x) || p(z)),
    (N,); all in nats. ``z``: (K, N, D), or None if z has several parts.
    """

    log_weight: Tensor
    nll: Tensor
    kl: Tensor
    z: Tensor | None = None


def point_mass(z: Tensor) -> Posterior:
    """The posterior of a deterministic encoder: z, with logvar = -inf."""
    return Posterior(z, torch.full_like(z, -torch.inf))


def split_gaussian(features: Tensor, context: int = 0) -> Posterior:
    """Split an encoder's output (N, 2 D + context) into mu (N, D), logvar (N, D) and, if context is
    above 0, the context (N, context)."""
    if context > 0:
        features, more = features.tensor_split([features.shape[-1] - context], dim=-1)
    mu, logvar = features.chunk(2, dim=-1)
    # The ops need contiguous inputs: one copy here saves one in each op.
    q = (mu.contiguous(), logvar.contiguous())
    if context == 0:
        return Posterior(*q)
    found = Contextual(*q)
    found.context = more
    return found


def log_densities(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)) of each element, in nats."""
    scaled = (z - mu) * torch.exp(-0.5 * logvar)  # scaled before squared: exp(-logvar) may overflow
    return -0.5 * (scaled * scaled + logvar + math.log(2.0 * math.pi))


def log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)) summed over the last dimension, in nats."""
    return log_densities(z, mu, logvar).sum(-1)


def standard_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, 1) summed over the last dimension, in nats."""
    return -0.5 * (z * z + math.log(2.0 * math.pi)).sum(-1)
