"""The Hamiltonian VAE (Caterini, Doucet & Sejdinovic 2018): leapfrog steps improve z."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.models.call import Call
from vae_fast.models.objectives.common import Objective, Terms
from vae_fast.networks import device_and_dtype


class Hamiltonian(Objective):
    """z_0 from the encoder and a momentum take K tempered leapfrog steps down -log p(x, z).

    The loss is -[log p(x, z_K) - |rho_K|^2 / 2 - log q(z_0 | x) + |gamma_0|^2 / 2] (section 3.3),
    the negative ELBO of the model with momenta. kl is the loss without the reconstruction.

    Args:
        leaps: K.
        step: the initial leapfrog step size, learned for each dimension.
        temperature: beta_0 in (0, 1]; it rises to 1 by the paper's quadratic scheme.
    """

    posteriors = "flat"

    def __init__(
        self, latent_dim: int, *, leaps: int = 3, step: float = 0.05, temperature: float = 0.3
    ) -> None:
        super().__init__()
        check_count("leaps", leaps)
        if not step > 0 or not 0 < temperature <= 1:
            raise ValueError(
                f"step is above 0, and temperature in (0, 1]: got {step} and {temperature}"
            )
        self.leaps, self.temperature = leaps, temperature
        self.log_step = nn.Parameter(torch.full((latent_dim,), math.log(step)))

    def terms(self, call: Call) -> Terms:
        call = call.repeatable()  # every force is of one density
        model, x, condition = call[:3]
        q, p = model.encode(x, *condition), model.prior(*condition)
        z, log_q = model.drawn(q, noise_key=call.noise_key)
        gamma = call.normals(z)
        moved, rho, recon = self.leapfrog(call, z, gamma, p)
        kinetic = 0.5 * (rho.square() - gamma.square()).sum(1)
        kl = log_q - model.log_prior(moved, p) + kinetic
        return recon + call.beta * kl, recon, kl

    def leapfrog(
        self, call: Call, z: Tensor, gamma: Tensor, p: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z_K, rho_K and -log p(x | z_K), after K leapfrog steps, each followed by tempering."""
        rho, step = gamma / math.sqrt(self.temperature), torch.exp(self.log_step)
        force, recon = slope(call, z, p)
        for cooling in tempering_factors(self.temperature, self.leaps):
            z = z + step * (rho - step / 2 * force)
            before, (force, recon) = force, slope(call, z, p)
            rho = (rho - step / 2 * (before + force)) * cooling
        return z, rho, recon


def slope(call: Call, z: Tensor, p: Any) -> tuple[Tensor, Tensor]:
    """d (-log p(x, z)) / dz, (N, D), in z's dtype, and -log p(x | z), (N,), in the model's;
    differentiable if gradients are enabled. p is the result of the model's ``prior``."""
    needs = torch.is_grad_enabled()
    # cuDNN's recurrent networks have no second derivative.
    recurrent = any(isinstance(m, nn.RNNBase) for m in call.model.modules())
    with (
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent),
    ):
        at = z if z.requires_grad else z.detach().requires_grad_()
        given = at.to(device_and_dtype(call.model)[1])
        nll = call.nll_at(given)
        energy = nll - call.model.log_prior(given, p)
        force = torch.autograd.grad(energy.sum(), at, create_graph=needs)[0]
    return force, nll if needs else nll.detach()


def tempering_factors(temperature: float, leaps: int) -> Iterator[float]:
    """The momentum's factor after each leap, by the quadratic scheme of section 3.2. Their product
    is sqrt(temperature)."""
    start = before = math.sqrt(temperature)
    for k in range(1, leaps + 1):
        now = 1 / ((1 - 1 / start) * (k / leaps) ** 2 + 1 / start)
        yield before / now
        before = now
