"""The importance-weighted autoencoder (Burda, Grosse & Salakhutdinov 2015).

``ImportanceWeighted`` turns the loss of any model with ``weighted_samples`` into the K-sample
bound; ``IWAE`` is the VAE so turned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vae_fast.models import importance
from vae_fast.models.vae import BetaVAE
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


class ImportanceWeighted:
    """A mixin, put before the model's class: ``class IWAE(ImportanceWeighted, BetaVAE)``.

    Args:
        num_samples: K; the bound is the ELBO for K = 1 and tightens with K.
        dreg: doubly reparameterised gradients for the encoder (Tucker et al. 2018), whose
            signal-to-noise ratio does not fall with K.
    """

    weighted_samples: Callable[..., Any]

    takes_objective = False

    def __init__(
        self, *networks: object, num_samples: int = 5, dreg: bool = False, **options: Any
    ) -> None:
        super().__init__(*networks, **options)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples
        self.dreg = dreg

    def loss(
        self,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> LossOutput:
        """loss = -log (1/K) sum_k w_k, in nats; recon and kl are the ELBO's, as for a VAE.

        So loss <= recon + kl on average, and the gap is what the K samples gain. ``options`` go to
        ``weighted_samples``: a sequence model's ``lengths``.
        """
        if free_bits > 0:
            raise ValueError("free_bits bounds the ELBO's KL; the IWAE's bound has no such term")
        samples = self.weighted_samples(
            x,
            *condition,
            num_samples=self.num_samples,
            beta=beta,
            constant_posterior=self.dreg,
            noise_key=noise_key,
            **options,
        )
        loss = -importance.bound(samples.log_weight)
        if self.dreg and samples.z.requires_grad:
            # d loss / d z_k carries one normalised weight v already; the estimator needs its square
            # for the encoder, and the encoder is all that z's gradient reaches (equation 8). With
            # q to the power of beta in w, the score that is left out is beta times as large: then
            # v (1 - beta (1 - v)) takes the square's place, by the same derivation.
            weight = samples.log_weight.detach().softmax(0).unsqueeze(-1)
            factor = (1.0 - beta * (1.0 - weight)).to(samples.z.dtype)
            samples.z.register_hook(lambda gradient: gradient * factor)
        # Of shape (N, 1), so that a batch of losses is not read as the features of one sample.
        terms = (loss, samples.nll.mean(0).detach(), samples.kl.detach())
        return LossOutput(*(reduce(t.unsqueeze(1), reduction) for t in terms))


class IWAE(ImportanceWeighted, BetaVAE):
    """A VAE trained on the K-sample bound instead of the ELBO."""
