"""Flows whose steps know earlier dimensions (MAF, IAF) or half of them (RealNVP)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 3.0  # of a step's log-scale, softly: e^3 a step is enough, and nothing overflows


class Flow(nn.Module):
    """An invertible map of (N, D). Both ways give log |det d out / d in| of each row, (N,)."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z)")

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no inverse in closed form")


def zero(layer: nn.Module) -> None:
    """A layer's parameters become zeros."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Masked(nn.Linear):
    """A linear layer of which ``mask`` (out, in) lets part of the weights through."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Shift and log-scale of dimension i from the dimensions before i (Germain et al. 2015).

    Hidden units know the first 1, 2, ..., D - 1 dimensions in turn.
    """

    def __init__(self, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        degrees = [torch.arange(1, dim + 1)]
        for size in hidden:
            degrees.append(torch.arange(size) % max(1, dim - 1) + 1)
        layers: list[nn.Module] = []
        for low, high in itertools.pairwise(degrees):
            layers += [Masked((high[:, None] >= low[None, :]).float()), nn.SiLU()]
        last = (degrees[0][:, None] > degrees[-1][None, :]).float()
        layers.append(Masked(last.repeat(2, 1)))
        zero(layers[-1])  # starts as the identity
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.layers(z).chunk(2, dim=-1)
        return shift, LARGEST * torch.tanh(raw / LARGEST)


class Autoregressive(Flow):
    """y_i = (z_i - m_i(z_<i)) exp(-s_i(z_<i)): one pass one way, D passes the other."""

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.made = MADE(dim, hidden)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.made(z)
        return (z - shift) * torch.exp(-scale), -scale.sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.zeros_like(y)
        for i in range(y.shape[-1]):
            shift, scale = self.made(z)
            column = y[..., i] * torch.exp(scale[..., i]) + shift[..., i]
            z = torch.cat([z[..., :i], column.unsqueeze(-1), z[..., i + 1 :]], -1)
        return z, self.made(z)[1].sum(-1)


class Coupling(Flow):
    """One half shifts and scales the other (Dinh et al. 2017, equations 7 and 8)."""

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.kept = dim // 2
        sizes = [max(1, self.kept), *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        layers.append(nn.Linear(sizes[-1], 2 * (dim - self.kept)))
        zero(layers[-1])
        self.layers = nn.Sequential(*layers)

    def _of(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        seen = kept if self.kept > 0 else kept.new_zeros(*kept.shape[:-1], 1)
        shift, raw = self.layers(seen).chunk(2, dim=-1)
        return shift, LARGEST * torch.tanh(raw / LARGEST)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = z[..., : self.kept], z[..., self.kept :]
        shift, scale = self._of(kept)
        return torch.cat([kept, (moved - shift) * torch.exp(-scale)], -1), -scale.sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = y[..., : self.kept], y[..., self.kept :]
        shift, scale = self._of(kept)
        return torch.cat([kept, moved * torch.exp(scale) + shift], -1), scale.sum(-1)
