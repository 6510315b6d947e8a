"""The Hamiltonian VAE (Caterini, Doucet & Sejdinovic 2018): leapfrog steps improve z."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.models import importance
from vae_fast.models.base import streams_of
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective


class Hamiltonian(Objective):
    """z_0 from the encoder and a momentum take K tempered leapfrog steps down -log p(x, z).

    The loss is -[log p(x, z_K) - |rho_K|^2 / 2 - log q(z_0 | x) + |gamma_0|^2 / 2] (section 3.3),
    the negative ELBO of the model with momenta. kl is the loss without the reconstruction.

    Args:
        leaps: K.
        step: the initial leapfrog step size, learned for each dimension.
        temperature: beta_0 in (0, 1]; it rises to 1 by the paper's quadratic scheme.
    """

    def __init__(
        self, latent_dim: int, *, leaps: int = 3, step: float = 0.05, temperature: float = 0.3
    ) -> None:
        super().__init__()
        if leaps < 1 or not step > 0 or not 0 < temperature <= 1:
            raise ValueError(
                "leaps is at least 1, step above 0, and temperature in (0, 1]: got "
                f"{leaps}, {step} and {temperature}"
            )
        self.leaps, self.temperature = leaps, temperature
        self.log_step = nn.Parameter(torch.full((latent_dim,), math.log(step)))

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, p = model.encode(x, *condition), model.prior(*condition)
        z = reparameterize(*q, noise_key=noise_key)
        gamma = momenta(z, noise_key)
        log_q = importance.log_density(z, *q)
        moved, rho, recon = self.moved(model, x, z, gamma, p, *condition)
        kinetic = 0.5 * (rho.square() - gamma.square()).sum(1)
        kl = log_q - model.log_prior(moved, p) + kinetic
        return recon + beta * kl, recon, kl

    def moved(
        self, model: Model, x: Tensor, z: Tensor, gamma: Tensor, p: Any, *condition: Tensor
    ) -> Any:
        """z_K, rho_K and -log p(x | z_K), after K leapfrog steps, each followed by tempering."""
        rho, step = gamma / math.sqrt(self.temperature), torch.exp(self.log_step)
        force, recon = slope(model, x, z, p, *condition)
        for cooling in coolings(self.temperature, self.leaps):
            z = z + step * (rho - step / 2 * force)
            before, (force, recon) = force, slope(model, x, z, p, *condition)
            rho = (rho - step / 2 * (before + force)) * cooling
        return z, rho, recon


def momenta(z: Tensor, noise_key: Tensor | None) -> Tensor:
    """Draws from N(0, 1) in z's shape, from the noise stream after z's own."""
    zeros = torch.zeros_like(z)
    key = None if noise_key is None else streams_of(noise_key, 1)
    return reparameterize(zeros, zeros, noise_key=key)


def slope(model: Any, x: Tensor, z: Tensor, p: Any, *condition: Tensor) -> tuple[Tensor, Tensor]:
    """d (-log p(x, z)) / dz, (N, D), and -log p(x | z), (N,); differentiable if gradients are
    enabled."""
    needs = torch.is_grad_enabled()
    with torch.enable_grad():
        at = z if z.requires_grad else z.detach().requires_grad_()
        nll = model.nll_at(x, at, *condition)
        energy = nll - model.log_prior(at, p)
        force = torch.autograd.grad(energy.sum(), at, create_graph=needs)[0]
    return force, nll if needs else nll.detach()


def coolings(temperature: float, leaps: int) -> Iterator[float]:
    """The momentum's factor after each leap, by the quadratic scheme of section 3.2. Their product
    is sqrt(temperature)."""
    start = before = math.sqrt(temperature)
    for k in range(1, leaps + 1):
        now = 1 / ((1 - 1 / start) * (k / leaps) ** 2 + 1 / start)
        yield before / now
        before = now
