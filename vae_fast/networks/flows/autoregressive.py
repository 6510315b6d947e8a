"""Autoregressive flows (MAF, IAF) and coupling flows (RealNVP)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 3.0  # soft bound of a step's log-scale, against overflow


class Flow(nn.Module):
    """An invertible map of (..., D). Both directions also return log |det d out / d in|, (...,).

    A flow made with ``context`` takes that many features of each row, (N, context), after z.
    """

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z)")

    def inverse(self, y: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no inverse in closed form")


def zero(layer: nn.Module) -> None:
    """Set a layer's parameters to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Masked(nn.Linear):
    """A linear layer with its weights multiplied by ``mask`` (out, in)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight * self.mask, self.bias)


class Conditioned(nn.Module):
    """``layers`` that map h and ``context`` features to a shift and a log-scale. The first and the
    last layer are linear; the first also sees the context, and the last starts at 0."""

    def __init__(self, layers: Sequence[Any], context: int) -> None:
        super().__init__()
        zero(layers[-1])  # a flow starts as the identity
        self.layers = nn.Sequential(*layers)
        self.by_context = None
        if context > 0:
            self.by_context = nn.Linear(context, layers[0].out_features, bias=False)

    def shift_and_scale(self, h: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """The shift and the bounded log-scale."""
        first, *others = self.layers
        h = first(h)
        if self.by_context is not None:
            h = h + self.by_context(*context)
        for layer in others:
            h = layer(h)
        shift, raw = h.chunk(2, dim=-1)
        return shift, LARGEST * torch.tanh(raw / LARGEST)


class MADE(Conditioned):
    """The shift and the log-scale of dimension i from the dimensions below i and the context.

    Germain et al. 2015. Hidden units see the first 1, 2, ..., D - 1 dimensions in turn."""

    def __init__(self, dim: int, hidden: Sequence[int], context: int = 0) -> None:
        degrees = [torch.arange(1, dim + 1)]
        degrees += [torch.arange(size) % max(1, dim - 1) + 1 for size in hidden]
        layers: list[nn.Module] = []
        for low, high in itertools.pairwise(degrees):
            layers += [Masked((high[:, None] >= low[None, :]).float()), nn.SiLU()]
        last = (degrees[0][:, None] > degrees[-1][None, :]).float()
        super().__init__([*layers, Masked(last.repeat(2, 1))], context)

    forward = Conditioned.shift_and_scale


class Autoregressive(Flow):
    """y_i = (z_i - m_i(z_<i)) exp(-s_i(z_<i)). ``forward`` takes one pass, ``inverse`` D passes."""

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64), context: int = 0) -> None:
        super().__init__()
        self.made = MADE(dim, hidden, context)

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.made(z, *context)
        return (z - shift) * torch.exp(-scale), -scale.sum(-1)

    def inverse(self, y: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.zeros_like(y)
        for i in range(y.shape[-1]):
            shift, scale = self.made(z, *context)
            column = y[..., i] * torch.exp(scale[..., i]) + shift[..., i]
            z = torch.cat([z[..., :i], column.unsqueeze(-1), z[..., i + 1 :]], -1)
        return z, self.made(z, *context)[1].sum(-1)


class Coupling(Conditioned, Flow):
    """One half shifts and scales the other (Dinh et al. 2017, equations 7 and 8)."""

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64), context: int = 0) -> None:
        sizes = [max(1, dim // 2), *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        super().__init__([*layers, nn.Linear(sizes[-1], 2 * (dim - dim // 2))], context)
        self.kept = dim // 2

    def _shift_and_scale(self, kept: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        seen = kept if self.kept > 0 else kept.new_zeros(*kept.shape[:-1], 1)
        return self.shift_and_scale(seen, *context)

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = z[..., : self.kept], z[..., self.kept :]
        shift, scale = self._shift_and_scale(kept, *context)
        return torch.cat([kept, (moved - shift) * torch.exp(-scale)], -1), -scale.sum(-1)

    def inverse(self, y: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = y[..., : self.kept], y[..., self.kept :]
        shift, scale = self._shift_and_scale(kept, *context)
        return torch.cat([kept, moved * torch.exp(scale) + shift], -1), scale.sum(-1)
