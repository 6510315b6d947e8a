"""Planar and radial flows (Rezende & Mohamed 2015): a bend each, forwards only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.models.flows.autoregressive import Flow


class Planar(Flow):
    """z + u tanh(w^T z + b), u held to w^T u >= -1, where it can be inverted (appendix A.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.u = nn.Parameter(0.01 * torch.randn(dim))
        self.w = nn.Parameter(0.1 * torch.randn(dim))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        along = (self.w * self.u).sum()
        length = self.w.square().sum().clamp_min(1e-12)
        u = self.u + (F.softplus(along) - 1 - along) * self.w / length
        bend = torch.tanh((z * self.w).sum(-1) + self.b)
        slope = (1 - bend * bend) * (self.w * u).sum()
        return z + bend.unsqueeze(-1) * u, torch.log1p(slope)


class Radial(Flow):
    """z + beta (z - c) / (alpha + |z - c|), beta held above -alpha (appendix A.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(0.1 * torch.randn(dim))
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.raw_beta = nn.Parameter(torch.full((), 0.5413))  # softplus of it is 1: the identity

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(self.log_alpha)
        beta = alpha * (F.softplus(self.raw_beta) - 1)
        away = z - self.centre
        r = away.square().sum(-1).clamp_min(1e-24).sqrt()
        h = 1 / (alpha + r)
        slope = torch.log1p(beta * h)
        along = torch.log1p(beta * alpha * h * h)
        return z + (beta * h).unsqueeze(-1) * away, (z.shape[-1] - 1) * slope + along
