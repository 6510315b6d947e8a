"""The importance-weighted autoencoder (Burda, Grosse & Salakhutdinov 2015).

``ImportanceWeighted`` replaces the loss of any model that has ``weighted_samples`` by the K-sample
bound; ``IWAE`` applies it to the VAE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vae_fast.functional.checks import check_count
from vae_fast.functional.importance import log_mean_exp
from vae_fast.models.call import Call
from vae_fast.models.vae import BetaVAE
from vae_fast.types import LossOutput


class ImportanceWeighted:
    """A mixin that precedes the model's class: ``class IWAE(ImportanceWeighted, BetaVAE)``.

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
        check_count("num_samples", num_samples)
        self.num_samples = num_samples
        self.dreg = dreg

    def own_loss(self, call: Call, **options: Any) -> LossOutput:
        """loss = -log (1/K) sum_k w_k, in nats (equation 8); recon and kl are those of the ELBO.

        For beta = 1, loss <= recon + kl in expectation; the gap measures how much K samples tighten
        the bound. ``options`` go to ``weighted_samples``, such as a sequence model's ``lengths``.
        free_bits > 0 raises ValueError.
        """
        call.refuse(free_bits="bounds the ELBO's KL; the IWAE's bound has no such term")
        samples = self.weighted_samples(
            call.x,
            *call.condition,
            num_samples=self.num_samples,
            beta=call.beta,
            constant_posterior=self.dreg,
            noise_key=call.noise_key,
            **options,
        )
        loss = -log_mean_exp(samples.log_weight, 0)
        if self.dreg and samples.z.requires_grad:
            # d loss / d z_k contains one normalised weight v. The encoder's estimator needs v^2,
            # and z's gradient reaches only the encoder (equation 8). With q^beta in w, the omitted
            # score term is beta times as large, and the same derivation gives
            # v (1 - beta (1 - v)) instead of v^2.
            weight = samples.log_weight.detach().softmax(0).unsqueeze(-1)
            factor = (1.0 - call.beta * (1.0 - weight)).to(samples.z.dtype)
            samples.z.register_hook(lambda gradient: gradient * factor)
        return call.output(loss, samples.nll.mean(0).detach(), samples.kl.detach())


class IWAE(ImportanceWeighted, BetaVAE):
    """A VAE trained on the K-sample bound instead of the ELBO."""
