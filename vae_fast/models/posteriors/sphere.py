"""The von Mises-Fisher posterior on the unit sphere (Davidson et al. 2018)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.models.posteriors.common import PosteriorPart, at_least_float32, normals

NODES = 128  # quadrature nodes of the integrals over the angle
TRIES = 16  # proposals for each sample; at least two in three are accepted


class VonMisesFisher(PosteriorPart):
    """q(z | x) ~ exp(kappa mu^T z) on the unit sphere in ``latent_dim`` dimensions, p(z) uniform.

    mu is the encoder's, normalised to length 1; kappa = 1 + softplus(mean(logvar)). Rejection
    sampling with a fixed number of proposals draws the cosine w = mu^T z (Wood 1994). Implicit
    reparameterisation gives dw / dkappa (Figurnov et al. 2018), so gradients are complete.
    Quadrature over the angle computes dw / dkappa, the normaliser and the KL, without Bessel
    functions. Densities are with respect to the sphere's surface.
    """

    name, has_own_space = "vmf", True

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(f"a sphere needs a latent_dim of 2 or more, got {latent_dim}")
        self.dim = latent_dim
        self.log_area = (
            math.log(2) + latent_dim / 2 * math.log(math.pi) - math.lgamma(latent_dim / 2)
        )

    def parameters_of(self, q: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """mu (N, D) of length 1, and kappa (N,)."""
        mu, raw = at_least_float32(q[0]), at_least_float32(q[1])
        return F.normalize(mu, dim=-1), 1 + F.softplus(raw.mean(-1))

    def sample(self, q: Any, **noise: Any) -> tuple[Tensor, Tensor]:
        mu, kappa = self.parameters_of(q)
        d = self.dim
        drawn = normals((TRIES * (d + 1) + d,), mu, **noise)
        proposals, away = drawn[..., :-d].unflatten(-1, (TRIES, d + 1)), drawn[..., -d:]
        w = self._cosine(kappa, proposals)
        away = away - (away * mu).sum(-1, keepdim=True) * mu
        z = w.unsqueeze(-1) * mu + (1 - w * w).clamp_min(1e-12).sqrt().unsqueeze(-1) * F.normalize(
            away, dim=-1
        )
        log_q = kappa * ((mu * z).sum(-1) - 1) - self._log_integral(kappa)[0] - self._log_rim()
        return z.to(q[0].dtype), log_q

    def center(self, q: tuple[Tensor, Tensor]) -> Tensor:
        return self.parameters_of(q)[0].to(q[0].dtype)

    def kl(self, q: tuple[Tensor, Tensor]) -> Tensor:
        """kappa E[w] + log C(kappa) + log area, (N,), in nats (equation 14 of the appendix)."""
        _, kappa = self.parameters_of(q)
        log_integral, mean = self._log_integral(kappa)
        return kappa * (mean - 1) - log_integral - self._log_rim() + self.log_area

    def log_prior(self, z: Tensor) -> Tensor:
        return torch.full_like(at_least_float32(z)[..., 0], -self.log_area)

    def sample_prior(self, eps: Tensor) -> Tensor:
        return F.normalize(eps, dim=-1)

    def project(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)

    def _log_rim(self) -> float:
        """log of the surface of the sphere one dimension lower, a factor of the normaliser."""
        half = (self.dim - 1) / 2
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def _terms(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """log of each node's term of the integral of exp(kappa (w - 1)) over the angle, (N, NODES),
        and the nodes' w - 1."""
        angle, log_weight = _nodes(self.dim, kappa.device, kappa.dtype)
        below = -2 * torch.sin(angle / 2) ** 2
        return kappa.unsqueeze(-1) * below + log_weight, below

    def _log_integral(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        """log of the integral over the angle t of exp(kappa (w - 1)) sin(t)^(D - 2), where w = cos t;
        and E[w]."""
        terms, below = self._terms(kappa)
        return terms.logsumexp(-1), 1 + (terms.softmax(-1) * below).sum(-1)

    def _cosine(self, kappa: Tensor, proposals: Tensor) -> Tensor:
        d, fixed = self.dim, kappa.detach().unsqueeze(-1)
        with torch.no_grad():
            # (1 + a uniform direction's coordinate) / 2 ~ Beta((D - 1) / 2, (D - 1) / 2).
            direction = F.normalize(proposals[..., :d], dim=-1)
            beta = (1 + direction[..., 0]) / 2
            u = 0.5 * torch.erfc(proposals[..., d] / math.sqrt(2))
            b = (d - 1) / (2 * fixed + (4 * fixed * fixed + (d - 1) ** 2).sqrt())
            x0 = (1 - b) / (1 + b)
            w = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
            score = fixed * (w - x0) + (d - 1) * (torch.log1p(-x0 * w) - torch.log1p(-x0 * x0))
            first = (score >= u.log()).to(torch.uint8).argmax(-1, keepdim=True)
            w = w.gather(-1, first).squeeze(-1).clamp(-1 + 1e-7, 1 - 1e-7)
            slope = self._slope(kappa.detach(), w)
        return w + slope * (kappa - kappa.detach())

    def _slope(self, kappa: Tensor, w: Tensor) -> Tensor:
        """dw / dkappa = -(dF / dkappa) / f at w: (int_w^1 (t - E[w]) f(t) dt) / f(w)."""
        log_integral, mean = self._log_integral(kappa)
        end = torch.acos(w)
        x, weight = _legendre(kappa.device, kappa.dtype)
        angle = end.unsqueeze(-1) * (x + 1) / 2  # from 0 to the angle of w
        below = -2 * torch.sin(angle / 2) ** 2
        powers = (self.dim - 2) * torch.sin(angle).clamp_min(1e-30).log()
        over = kappa.unsqueeze(-1) * below + powers
        off = below - (mean - 1).unsqueeze(-1)
        integral = (end / 2) * (weight * off * torch.exp(over - log_integral.unsqueeze(-1))).sum(-1)
        sine = torch.sin(end).clamp_min(1e-30)
        # f is a density in w: dw = sin(angle) dangle lowers the power of the sine to D - 3.
        log_f = kappa * (w - 1) + (self.dim - 3) * sine.log() - log_integral
        return integral * torch.exp(-log_f)


@functools.lru_cache(maxsize=8)
def _legendre(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))
    return x.to(device, dtype), weight.to(device, dtype)


@functools.lru_cache(maxsize=8)
def _nodes(dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles from 0 to pi, and log(weight sin^(dim - 2)) at them."""
    x, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))
    angle = math.pi / 2 * (x + 1)
    log_weight = torch.log(math.pi / 2 * weight) + (dim - 2) * torch.sin(angle).log()
    return angle.to(device, dtype), log_weight.to(device, dtype)
