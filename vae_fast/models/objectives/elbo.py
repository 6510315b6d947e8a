"""Objectives that change one term of the ELBO: a KL capacity, or MS-SSIM as reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast.functional.images import ms_ssim
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective, Steps


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

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = self.capacity * (self.part(self.rise) if self.rise > 0 else 1.0)
        drawn = model.draw(x, *condition, noise_key=noise_key)
        recon = model.nll_at(x, drawn.z, *condition)
        return recon + beta * self.gamma * (drawn.kl - c).abs(), recon, drawn.kl


class MSSSIM(Objective):
    """weight (1 - MS-SSIM(x, E[x | z])) + beta KL (Snell et al. 2017).

    recon is the first term, which is not a likelihood.
    """

    def __init__(self, *, weight: float = 1000.0) -> None:
        super().__init__()
        self.weight = weight

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        drawn = model.draw(x, *condition, noise_key=noise_key)
        made = model.as_input(model.likelihood.mean(model.decode(drawn.z, *condition)), x.dtype)
        wide = torch.promote_types(made.dtype, torch.float32)
        recon = self.weight * (1 - ms_ssim(made.to(wide), model.network_input(x).to(wide)))
        return recon + beta * drawn.kl, recon, drawn.kl
