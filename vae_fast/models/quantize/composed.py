"""Quantisers composed of quantisers: in sequence, or of parts of a vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.models.quantize.common import Quantized, Quantizer, straight_through


class Residual(Quantizer):
    """Each layer quantises the residual of the previous ones; z is their sum.

    Zeghidour et al. 2021. The straight-through gradient applies once, to the sum.
    """

    layers: Any  # a ModuleList of quantisers

    def __init__(self, layers: Iterable[Quantizer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dim = self.layers[0].dim
        self.sizes = tuple(n for layer in self.layers for n in layer.sizes)

    def forward(self, z: Tensor) -> Quantized:
        rest, codes = z, []
        total: Any = 0.0
        loss: Any = 0.0
        for layer in self.layers:
            found = layer(rest)
            rest, total = rest - found.z.detach(), total + found.z.detach()
            codes.append(found.codes)
            loss = loss + found.loss
        return Quantized(straight_through(z, total), torch.cat(codes, 1), loss)

    def lookup(self, codes: Tensor) -> Tensor:
        parts = codes.split([len(layer.sizes) for layer in self.layers], 1)
        total: Any = sum(layer.lookup(c) for layer, c in zip(self.layers, parts, strict=True))
        return total


class Grouped(Quantizer):
    """Parts of a vector, each with its own quantiser (Yang et al. 2023, HiFi-Codec)."""

    parts: Any  # a ModuleList of quantisers

    def __init__(self, parts: Iterable[Quantizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.dim = sum(part.dim for part in self.parts)
        self.sizes = tuple(n for part in self.parts for n in part.sizes)

    def forward(self, z: Tensor) -> Quantized:
        pieces = z.split([part.dim for part in self.parts], 1)
        found = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        parts, codes, losses = zip(*found, strict=True)
        return Quantized(torch.cat(parts, 1), torch.cat(codes, 1), sum(losses))

    def lookup(self, codes: Tensor) -> Tensor:
        pieces = codes.split([len(part.sizes) for part in self.parts], 1)
        found = [part.lookup(c) for part, c in zip(self.parts, pieces, strict=True)]
        return torch.cat(found, 1)
