"""Draws of z from the density that a Riemannian VAE's metric defines (Chadebec et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_fast.models.objectives.riemannian import Riemannian


class MetricSampler(nn.Module):
    """z with a density in proportion to sqrt(det G(z)^-1), by Hamiltonian Monte Carlo that starts at the
    metric's centres (Chadebec, Thibeau-Sutre, Burgos & Allassonniere 2022, section 3.3).

    Args:
        objective: a trained ``Riemannian``. proposals: of each chain. leaps, step: of a proposal.
    """

    def __init__(
        self, objective: Riemannian, *, proposals: int = 100, leaps: int = 15, step: float = 0.03
    ) -> None:
        super().__init__()
        if proposals < 0 or leaps < 1 or not step > 0:
            raise ValueError(
                "proposals can't be negative, leaps is at least 1 and step above 0: got "
                f"{proposals}, {leaps} and {step}"
            )
        centers = objective.centers
        self.metric = objective.metric(centers)
        self.starts = centers[objective.kept > 0]
        self.proposals, self.leaps, self.step = proposals, leaps, step

    def log_density(self, z: Tensor) -> Tensor:
        """log sqrt(det G(z)^-1), up to a constant, (N,)."""
        return 0.5 * torch.linalg.slogdet(self.metric.inverse(z)).logabsdet

    @torch.no_grad()
    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """n draws; the density is taken to the power of 1 / temperature^2."""
        sharp = 1 / max(temperature, 1e-6) ** 2
        z = self.starts[torch.randint(len(self.starts), (n,), device=self.starts.device)]

        def force(at: Tensor) -> Tensor:
            return sharp * self.metric.slope(at, None, self.metric.inverse(at))

        for _ in range(self.proposals):
            rho = torch.randn_like(z)
            before = sharp * self.log_density(z) - 0.5 * rho.square().sum(1)
            at, rho = z, rho - self.step / 2 * force(z)
            for leap in range(self.leaps):
                at = at + self.step * rho
                rho = rho - self.step * (0.5 if leap == self.leaps - 1 else 1.0) * force(at)
            after = sharp * self.log_density(at) - 0.5 * rho.square().sum(1)
            taken = torch.rand_like(after) < torch.exp(after - before)
            z = torch.where(taken.unsqueeze(1), at, z)
        return z
