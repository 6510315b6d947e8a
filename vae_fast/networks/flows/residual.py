"""Planar and radial flows (Rezende & Mohamed 2015), without an inverse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.networks.flows.autoregressive import Flow


class ParametricFlow(Flow):
    """A flow with few parameters, which start as ``start``. With ``context``, a linear map of it,
    which starts at 0, is added to them."""

    def __init__(self, context: int = 0, **start: Tensor) -> None:
        super().__init__()
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value))
        self.sizes = {name: value.numel() for name, value in start.items()}
        self.by_context = None
        if context > 0:
            self.by_context = nn.Linear(context, sum(self.sizes.values()))
            nn.init.zeros_(self.by_context.weight)
            nn.init.zeros_(self.by_context.bias)

    def numbers(self, context: tuple[Tensor, ...]) -> list[Tensor]:
        """Each parameter, (size,) or (N, size)."""
        own = [getattr(self, name).reshape(-1) for name in self.sizes]
        if self.by_context is None:
            return own
        more = self.by_context(*context).split(list(self.sizes.values()), -1)
        return [a + b for a, b in zip(own, more, strict=True)]


class Planar(ParametricFlow):
    """z + u tanh(w^T z + b), with w^T u >= -1 so that it is invertible (appendix A.1)."""

    def __init__(self, dim: int, context: int = 0) -> None:
        start = {"u": 0.01 * torch.randn(dim), "w": 0.1 * torch.randn(dim), "b": torch.zeros(1)}
        super().__init__(context, **start)

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        u, w, b = self.numbers(context)
        along = (w * u).sum(-1, keepdim=True)
        length = w.square().sum(-1, keepdim=True).clamp_min(1e-12)
        u = u + (F.softplus(along) - 1 - along) * w / length
        bend = torch.tanh((z * w).sum(-1) + b.squeeze(-1))
        slope = (1 - bend * bend) * (w * u).sum(-1)
        return z + bend.unsqueeze(-1) * u, torch.log1p(slope)


class Radial(ParametricFlow):
    """z + beta (z - c) / (alpha + |z - c|), with beta > -alpha (appendix A.2)."""

    def __init__(self, dim: int, context: int = 0) -> None:
        start = {
            "centre": 0.1 * torch.randn(dim),
            "log_alpha": torch.zeros(1),
            "raw_beta": torch.full((1,), 0.5413),  # its softplus is 1: the identity
        }
        super().__init__(context, **start)

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        centre, log_alpha, raw_beta = self.numbers(context)
        alpha = torch.exp(log_alpha.squeeze(-1))
        beta = alpha * (F.softplus(raw_beta.squeeze(-1)) - 1)
        away = z - centre
        r = away.square().sum(-1).clamp_min(1e-24).sqrt()
        h = 1 / (alpha + r)
        slope = torch.log1p(beta * h)
        along = torch.log1p(beta * alpha * h * h)
        return z + (beta * h).unsqueeze(-1) * away, (z.shape[-1] - 1) * slope + along
