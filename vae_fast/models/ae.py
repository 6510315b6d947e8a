"""The deterministic autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.backend import is_transforming
from vae_fast.joined import RunningMeans
from vae_fast.models.base import Deterministic
from vae_fast.models.call import Call
from vae_fast.types import LossOutput


class AE(RunningMeans, Deterministic):
    """z = encoder(x), without noise; the decoder parametrises p(x | z).

    There is no prior. ``sample`` uses a Gaussian fitted to the training codes, with their running
    mean and covariance.

    Args:
        momentum: the latest batch's weight in the running statistics, which are plain means over
            the first 1 / momentum batches.
    """

    code_mean: Tensor
    code_square: Tensor

    takes_objective = True

    def __init__(self, *networks: nn.Module, momentum: float = 0.01, **options: Any) -> None:
        super().__init__(*networks, **options)
        if self.objective is not None and self.objective.deterministic is None:
            raise ValueError(
                f"{self.objective.name} is for models that draw z, or quantise it: take a vae or a "
                "vq-vae"
            )
        d = self.latent_dim
        self.start_means(momentum, code_mean=torch.zeros(d), code_square=torch.eye(d))  # E[z z^T]

    def own_loss(self, call: Call) -> LossOutput:
        """-log p(x | z) in nats, with kl = 0."""
        z = self.tracked_codes(call.x, *call.condition)
        recon = self.likelihood.nll(self.decode(z), call.x, reduction=call.reduction)
        return LossOutput(recon, recon.detach(), torch.zeros_like(recon))

    def tracked_codes(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The codes of x, (N, latent_dim). In training they update the running statistics."""
        z = self.features(x, *condition)
        if self.training:
            if is_transforming():
                raise RuntimeError(
                    "AE follows its codes' mean and covariance in training, which torch.func's "
                    "transforms can't: call model.eval() first"
                )
            self._follow(z.detach())
        return z

    @torch.no_grad()
    def _follow(self, z: Tensor) -> None:
        z = z.to(self.code_mean.dtype)
        with torch.autocast(z.device.type, enabled=False):  # keeps the product in float32
            square = z.t() @ z / z.shape[0]
        self.update_means(code_mean=z.mean(0), code_square=square)

    def prior_from(
        self, eps: Tensor, source: torch.Generator | Tensor | None = None, *condition: Tensor
    ) -> Tensor:
        """z of the Gaussian fitted to the training codes, for each row of eps (N, latent_dim)."""
        covariance = self.code_square - torch.outer(self.code_mean, self.code_mean)
        # The floor keeps the covariance positive definite where codes do not vary.
        floor = 1e-5 * covariance.diagonal().mean().clamp_min(1e-6)
        eye = torch.eye(self.latent_dim, device=eps.device, dtype=covariance.dtype)
        factor = torch.linalg.cholesky(covariance + floor * eye)
        return (self.code_mean + eps.to(factor.dtype) @ factor.t()).to(eps.dtype)
