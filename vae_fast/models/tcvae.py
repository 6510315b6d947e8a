"""The beta-TC-VAE (Chen et al. 2018): separate weights for the three parts of the KL."""

from __future__ import annotations

from typing import Any

from torch import nn

from vae_fast.functional import aggregate_log_densities
from vae_fast.functional.pairwise import Sampling
from vae_fast.models.call import Call
from vae_fast.models.gaussian import log_density, standard_log_density
from vae_fast.models.vae import BetaVAE
from vae_fast.types import LossOutput


class BetaTCVAE(BetaVAE):
    """-log p(x | z) + alpha * mutual information + beta * total correlation + gamma * dimension KL.

    Chen et al. 2018, equation 4; beta is the loss's. Each of several processes estimates the
    terms from its own part of the batch.

    Args:
        dataset_size: the number of training samples. The trainer sets it.
        alpha, gamma: weights of the index-code mutual information and of the dimension-wise KL.
        sampling: "stratified" or "weighted" (``vae_fast.aggregate_log_densities``).
    """

    takes_objective = takes_posterior = False

    def __init__(
        self,
        *networks: nn.Module,
        dataset_size: int | None = None,
        alpha: float = 1.0,
        gamma: float = 1.0,
        sampling: Sampling = "stratified",
        **options: Any,
    ) -> None:
        super().__init__(*networks, **options)
        if self.learned_prior is not None:
            raise ValueError("the KL in three parts is that to N(0, 1): leave the prior standard")
        self.dataset_size = dataset_size
        self.alpha, self.gamma, self.sampling = alpha, gamma, sampling

    def own_loss(self, call: Call) -> LossOutput:
        """In nats. kl is the exact KL(q(z | x) || N(0, 1)), without gradient; the three parts
        estimate it. free_bits > 0 and a missing dataset_size raise ValueError."""
        call.refuse(free_bits="bounds a KL, and here it comes in three parts")
        if self.dataset_size is None:
            raise ValueError(
                "total correlation needs dataset_size, how many samples batches are drawn from: "
                "set model.dataset_size"
            )
        q, z, exact = call.draw()
        recon = call.nll_at(z)
        # A validation batch may be larger than the training set.
        size = max(self.dataset_size, len(z))
        whole, parts = aggregate_log_densities(z, *q, size, sampling=self.sampling)
        marginals = parts.sum(1)
        information = log_density(z, *q) - whole
        by_dimension = marginals - standard_log_density(z)
        kl = self.alpha * information + call.beta * (whole - marginals) + self.gamma * by_dimension
        return call.output(recon + kl, recon, exact.detach())
