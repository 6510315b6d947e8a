"""A gated PixelCNN over maps of codes (van den Oord et al. 2016), with several codes per
position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Causal(nn.Conv2d):
    """A 5 x 5 convolution over the positions before a position in reading order, with or without
    itself."""

    mask: Tensor

    def __init__(self, n_in: int, n_out: int, *, itself: bool) -> None:
        super().__init__(n_in, n_out, 5, padding=2)
        mask = torch.zeros(5, 5)
        mask[:2], mask[2, : 2 + itself] = 1, 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.conv2d(h, self.weight * self.mask, self.bias, padding=2)


class _Gated(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Causal(channels, 2 * channels, itself=True)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.conv(h).chunk(2, 1)
        return h + self.out(torch.tanh(a) * torch.sigmoid(b))


class PixelCNN(nn.Module):
    """p(codes), factorised over positions in reading order, and over the codes of a position.

    Args:
        sizes: the number of values of each of a position's C codes.
        grid: (H, W).
    """

    def __init__(
        self, sizes: Sequence[int], grid: tuple[int, int], *, channels: int = 64, layers: int = 6
    ) -> None:
        super().__init__()
        if max(sizes) > 1 << 17:
            raise ValueError(
                f"a PixelCNN has an output for each of a code's values, and a code has {max(sizes)}: "
                "use codes of fewer values, in several layers or groups"
            )
        self.sizes, self.grid = tuple(sizes), tuple(grid)
        self.embeddings = nn.ModuleList(nn.Embedding(n, channels) for n in sizes)
        self.where = nn.Parameter(torch.zeros(channels, *grid))
        self.first = _Causal(channels, channels, itself=False)
        self.layers = nn.ModuleList(_Gated(channels) for _ in range(layers))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, n))
            for n in sizes
        )

    def features_before(self, codes: Tensor) -> Tensor:
        """Features of each position from the positions before it, (N, H, W, channels), for codes
        (N, H, W, C)."""
        h = sum(e(c) for e, c in zip(self.embeddings, codes.unbind(-1), strict=True))
        h = self.first(h.permute(0, 3, 1, 2)) + self.where
        for layer in self.layers:
            h = layer(h)
        return h.permute(0, 2, 3, 1)

    def logits(self, h: Tensor, codes: Tensor, c: int) -> Tensor:
        """Logits of code c, from earlier positions and the position's codes before c."""
        for e, code in zip(self.embeddings[:c], codes.unbind(-1), strict=False):
            h = h + e(code)
        return self.heads[c](h)

    def nll(self, codes: Tensor) -> Tensor:
        """-log p(codes) in nats, (N,)."""
        h = self.features_before(codes)
        total: Any = 0.0
        for c in range(len(self.sizes)):
            logits = self.logits(h, codes, c).movedim(-1, 1)
            total = total + F.cross_entropy(logits, codes[..., c], reduction="none").sum((1, 2))
        return total

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Codes (n, H, W, C); temperature 0 takes the likeliest."""
        height, width = self.grid
        device = self.where.device
        codes = torch.zeros((n, height, width, len(self.sizes)), dtype=torch.int64, device=device)
        for i in range(height):
            for j in range(width):
                h = self.features_before(codes)[:, i, j]
                for c in range(len(self.sizes)):
                    logits = self.logits(h, codes[:, i, j], c)
                    if temperature == 0 or n == 0:
                        codes[:, i, j, c] = logits.argmax(-1)
                    else:
                        p = (logits / temperature).softmax(-1)
                        codes[:, i, j, c] = torch.multinomial(p, 1).squeeze(-1)
        return codes
