"""The variational autoencoder (Kingma & Welling 2014).

beta-VAE (Higgins et al. 2017) is this model with beta != 1 in the objective.
"""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import reparameterize
from vae_fast.models.base import LatentModel, Posterior, free_bits_kl, split_gaussian
from vae_fast.types import LossOutput, Reduction


class VAE(LatentModel):
    """q(z | x) = N(mu(x), exp(logvar(x))), p(z) = N(0, 1), p(x | z) any likelihood.

    The encoder gives 2 * latent_dim features: mu, then logvar.
    """

    def encode(self, x: Tensor) -> Posterior:
        return split_gaussian(self.encoder(self.network_input(x)))

    def loss(
        self,
        x: Tensor,
        *,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
    ) -> LossOutput:
        """E_q[-log p(x | z)] + beta * KL(q(z | x) || p(z)), in nats, one z per sample.

        The negative ELBO for beta = 1 (equation 10).
        """
        mu, logvar = self.encode(x)
        params = self.decode(reparameterize(mu, logvar, noise_key=noise_key))
        if free_bits > 0:
            recon = self.likelihood.nll(params, x, reduction=reduction)
            kl = free_bits_kl(mu, logvar, free_bits, reduction=reduction)
            return LossOutput(recon + beta * kl, recon, kl)
        return self.likelihood.loss(params, x, mu, logvar, beta=beta, reduction=reduction)
