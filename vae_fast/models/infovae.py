"""Autoencoders regularised by the maximum mean discrepancy (MMD): InfoVAE and WAE-MMD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vae_fast.functional import mmd
from vae_fast.functional.pairwise import Kernel
from vae_fast.models.base import Deterministic
from vae_fast.models.call import Call
from vae_fast.models.vae import BetaVAE
from vae_fast.types import LossOutput

# s in the inverse multiquadratic kernel's C = 2 D s = 2 h^2, with bandwidth h (Tolstikhin et al.
# 2018, section 4, and their code).
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class PriorMMD:
    """A mixin: the MMD between a batch of z and as many draws from N(0, 1).

    Args:
        kernel: "imq" or "rbf" (``vae_fast.mmd``).
        bandwidths: the kernel is the mean over them. None: sqrt(s D) for each s in ``SCALES``.
    """

    latent_dim: int

    def __init__(
        self,
        *networks: object,
        kernel: Kernel = "imq",
        bandwidths: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*networks, **options)
        if bandwidths is None:
            bandwidths = [math.sqrt(s * self.latent_dim) for s in SCALES]
        self.kernel, self.bandwidths = kernel, tuple(bandwidths)

    def prior_mmd(self, z: Tensor, call: Call) -> Tensor:
        """The squared MMD of z (N, D) and N draws from N(0, 1), (N,), the same for each sample;
        unbiased for N > 1."""
        found = mmd(
            z,
            call.normals(z),
            unbiased=len(z) > 1,
            kernel=self.kernel,
            bandwidths=self.bandwidths,
        )
        return found.expand(len(z))


class InfoVAE(PriorMMD, BetaVAE):
    """-log p(x | z) + beta * ((1 - alpha) KL(q(z | x) || p) + (alpha + lambda - 1) MMD(q(z), p)).

    Zhao, Song & Ermon 2019, equation 6, with the MMD as the divergence. alpha = 1 removes the KL
    and gives the MMD-VAE.

    Args:
        alpha: at most 1; the KL has the weight 1 - alpha.
        mmd_weight: the paper's lambda, at least 1 - alpha.
    """

    takes_objective = takes_posterior = False

    def __init__(
        self, *networks: object, alpha: float = 0.5, mmd_weight: float = 100.0, **options: Any
    ) -> None:
        super().__init__(*networks, **options)
        if self.learned_prior is not None:
            raise ValueError("an InfoVAE's z is compared with N(0, 1): leave the prior standard")
        if alpha > 1 or alpha + mmd_weight < 1:
            raise ValueError(
                f"alpha is at most 1 and alpha + mmd_weight at least 1, got {alpha} and {mmd_weight}"
            )
        self.alpha, self.mmd_weight = alpha, mmd_weight

    def own_loss(self, call: Call) -> LossOutput:
        """In nats. kl is KL(q(z | x) || N(0, 1)), without gradient. free_bits > 0 and
        reduction="none" raise ValueError."""
        call.refuse(free_bits="bounds a KL alone", none="the MMD")
        _, z, kl = call.draw()
        recon = call.nll_at(z)
        far = (self.alpha + self.mmd_weight - 1) * self.prior_mmd(z, call)
        return call.output(recon + call.beta * ((1 - self.alpha) * kl + far), recon, kl.detach())


class WAE(PriorMMD, Deterministic):
    """The Wasserstein autoencoder WAE-MMD: -log p(x | z) + beta * MMD(z, N(0, 1)), z = encoder(x).

    Tolstikhin et al. 2018, algorithm 2, with a deterministic encoder; beta is their lambda.
    """

    def own_loss(self, call: Call) -> LossOutput:
        """recon is in nats; kl is the MMD, which has no unit. free_bits > 0 and reduction="none"
        raise ValueError."""
        call.refuse(free_bits="bounds a KL alone", none="the MMD")
        z = self.features(call.x, *call.condition)
        recon, far = call.nll_at(z), self.prior_mmd(z, call)
        return call.output(recon + call.beta * far, recon, far)
