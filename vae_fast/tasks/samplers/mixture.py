"""A mixture of Gaussians fitted to codes by expectation maximisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vae_fast.functional import nearest_code
from vae_fast.functional.checks import check_count


class GaussianMixture(nn.Module):
    """K Gaussians with full covariances (Bishop 2006, section 9.2), in float64.

    Args:
        dim: D. components: K; no more are used than there are codes.
    """

    def __init__(self, dim: int, *, components: int = 10) -> None:
        super().__init__()
        check_count("a mixture's components", components)
        self.register_buffer("weights", torch.full((components,), 1 / components).double())
        self.register_buffer("mu", torch.zeros(components, dim).double())
        self.register_buffer("factors", torch.eye(dim).double().repeat(components, 1, 1))

    def fit(self, z: Tensor, *, iterations: int = 100, tolerance: float = 1e-4) -> GaussianMixture:
        """Fit to codes z, (N, D), by at most ``iterations`` of EM, which end when the mean
        log-likelihood gains less than ``tolerance`` nats."""
        z = z.double()
        n, d = z.shape
        k = min(len(self.weights), n)
        spread = z.var(0, correction=0).mean().clamp_min(1e-12)
        floor = 1e-6 * spread * torch.eye(d, dtype=z.dtype, device=z.device)
        nearest = nearest_code(z, self._seeds(z, k))[0]
        share = torch.nn.functional.one_hot(nearest, len(self.weights)).to(z.dtype)
        self.log_likelihood = -math.inf
        for _ in range(iterations):
            self._maximise(z, share, floor)
            joint = self._log_joint(z)
            each = joint.logsumexp(1)
            share = (joint - each.unsqueeze(1)).exp()
            before, self.log_likelihood = self.log_likelihood, float(each.mean())
            if self.log_likelihood - before < tolerance:
                break
        return self

    @staticmethod
    def _seeds(z: Tensor, k: int) -> Tensor:
        """k of the codes, distant from each other (k-means++, Arthur & Vassilvitskii 2007)."""
        chosen = [z[torch.randint(len(z), (1,), device=z.device)]]
        distance = torch.full((len(z),), math.inf, dtype=z.dtype, device=z.device)
        for _ in range(k - 1):
            distance = torch.minimum(distance, (z - chosen[-1]).square().sum(1))
            weight = distance if distance.sum() > 0 else torch.ones_like(distance)
            chosen.append(z[torch.multinomial(weight, 1)])
        return torch.cat(chosen)

    def _maximise(self, z: Tensor, share: Tensor, floor: Tensor) -> None:
        count = share.sum(0).clamp_min(1e-10)
        self.weights = count / len(z)
        self.mu = share.t() @ z / count.unsqueeze(1)
        covariances = []
        for mu, part, n in zip(self.mu, share.t(), count, strict=True):
            away = z - mu
            covariances.append((away * part.unsqueeze(1)).t() @ away / n + floor)
        self.factors = torch.linalg.cholesky(torch.stack(covariances))

    def _log_joint(self, z: Tensor) -> Tensor:
        columns = []
        for weight, mu, factor in zip(self.weights, self.mu, self.factors, strict=True):
            scaled = torch.linalg.solve_triangular(factor, (z - mu).t(), upper=False)
            constant = factor.diagonal().log().sum() + 0.5 * z.shape[1] * math.log(2 * math.pi)
            columns.append(weight.log() - 0.5 * scaled.square().sum(0) - constant)
        return torch.stack(columns, 1)

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (N,)."""
        return self._log_joint(z.double()).logsumexp(1)

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True)
        eps = temperature * torch.randn(n, self.mu.shape[1], dtype=self.mu.dtype, device=k.device)
        return self.mu[k] + (self.factors[k] @ eps.unsqueeze(-1)).squeeze(-1)
