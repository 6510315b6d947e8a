"""Importance weights: log w = log p(x, z) - log q(z | x) for z ~ q(z | x), in nats.

The IWAE's bound, the importance-sampled NLL and anomaly scores use them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class WeightedSamples(NamedTuple):
    """K samples of z for each x, with their importance weights w.

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
