"""Objectives that change one term of the ELBO: a KL capacity, or MS-SSIM as reconstruction."""

from __future__ import annotations

from vae_fast.functional.images import ms_ssim
from vae_fast.models.call import Call
from vae_fast.models.objectives.common import Objective, Steps, Terms


class Capacity(Steps):
    """-log p(x | z) + beta gamma |KL - C|, where C rises linearly from 0 (Burgess et al. 2018,
    equation 8).

    Args:
        capacity: the final C, in nats.
        rise: the training steps over which C rises.
    """

    def __init__(
        self, *, capacity: float = 25.0, gamma: float = 1000.0, rise: int = 25_000
    ) -> None:
        super().__init__()
        if capacity < 0 or gamma < 0 or rise < 0:
            raise ValueError(
                f"capacity, gamma and rise can't be negative, got {capacity}, {gamma} and {rise}"
            )
        self.capacity, self.gamma, self.rise = capacity, gamma, rise

    def terms(self, call: Call) -> Terms:
        c = self.capacity * (self.part(self.rise) if self.rise > 0 else 1.0)
        _, z, kl = call.draw()
        recon = call.nll_at(z)
        return recon + call.beta * self.gamma * (kl - c).abs(), recon, kl


class MSSSIM(Objective):
    """weight (1 - MS-SSIM(x, E[x | z])) + beta KL (Snell et al. 2017).

    recon is the first term, which is not a likelihood.
    """

    def __init__(self, *, weight: float = 1000.0) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, call: Call) -> Terms:
        _, z, kl = call.draw()
        made = call.mean_at(z)
        recon = self.weight * (1 - ms_ssim(made, call.model.network_input(call.x)))
        return recon + call.beta * kl, recon, kl
