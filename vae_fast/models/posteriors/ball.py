"""The wrapped normal posterior in the Poincare ball (Mathieu et al. 2019; Nagano et al. 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_fast.models.gaussian import log_density, standard_log_density
from vae_fast.models.posteriors.common import PosteriorPart, at_least_float32, normals

EDGE = 1e-5  # the least distance to the ball's boundary, as a fraction of its radius


class PoincareNormal(PosteriorPart):
    """z = exp_mu(v / lambda_mu), v ~ N(0, exp(logvar)), in the Poincare ball of curvature -c.

    mu is exp_0 of the encoder's output. p(z) is the same distribution at the origin with variance
    1. Densities are with respect to the ball's Riemannian volume.

    Args:
        curvature: c.
    """

    name, has_own_space = "poincare", True

    def __init__(self, latent_dim: int, *, curvature: float = 1.0) -> None:
        super().__init__()
        if not curvature > 0:
            raise ValueError(f"curvature must be above 0, got {curvature}")
        self.dim, self.root = latent_dim, math.sqrt(curvature)

    def sample(self, q: Any, **noise: Any) -> tuple[Tensor, Tensor]:
        mu, logvar = self._expmap0(at_least_float32(q[0])), at_least_float32(q[1])
        v = torch.exp(0.5 * logvar) * normals((self.dim,), mu, **noise)
        z = self._expmap(mu, v)
        log_q = log_density(v, torch.zeros_like(mu), logvar) - self._log_volume(_norm(v))
        return z.to(q[0].dtype), log_q

    def center(self, q: tuple[Tensor, Tensor]) -> Tensor:
        return self._expmap0(at_least_float32(q[0])).to(q[0].dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        z = at_least_float32(z)
        length = _norm(z)
        r = 2 * torch.atanh((self.root * length).clamp(max=1 - EDGE / 2)) / self.root
        v = z * (r / length).unsqueeze(-1)
        return standard_log_density(v) - self._log_volume(r)

    def sample_prior(self, eps: Tensor) -> Tensor:
        return self._expmap0(at_least_float32(eps) / 2).to(eps.dtype)

    def _log_volume(self, r: Tensor) -> Tensor:
        """(D - 1) log(sinh(sqrt(c) r) / (sqrt(c) r)), without overflow."""
        s = self.root * r
        small = s * s / 6 - s**4 / 180
        safe = s.clamp_min(1e-2)
        large = safe + torch.log(-torch.expm1(-2 * safe)) - math.log(2) - safe.log()
        return (self.dim - 1) * torch.where(s < 1e-2, small, large)

    def _expmap0(self, v: Tensor) -> Tensor:
        length = _norm(v)
        scale = torch.tanh(self.root * length) / (self.root * length)
        return self.project(v * scale.unsqueeze(-1))

    def _expmap(self, x: Tensor, v: Tensor) -> Tensor:
        """exp_x(v / lambda_x), at the distance |v| from x."""
        length = _norm(v)
        step = v * (torch.tanh(self.root * length / 2) / (self.root * length)).unsqueeze(-1)
        return self.project(self._added(x, step))

    def _added(self, x: Tensor, y: Tensor) -> Tensor:
        """Moebius addition."""
        c = self.root**2
        xy = (x * y).sum(-1, keepdim=True)
        xx, yy = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
        top = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return top / (1 + 2 * c * xy + c * c * xx * yy)

    def project(self, z: Tensor) -> Tensor:
        most = (1 - EDGE) / self.root
        return z * (most / _norm(z)).clamp(max=1.0).unsqueeze(-1)


def _norm(v: Tensor) -> Tensor:
    return v.square().sum(-1).clamp_min(1e-24).sqrt()
