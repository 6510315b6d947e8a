"""Quantisers without a codebook, which round each dimension (FSQ) or take its sign (LFQ)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast.functional.checks import check_counts
from vae_fast.joined import is_split, joined_mean
from vae_fast.models.quantize.common import Quantized, Quantizer, straight_through

BATCH_ENTROPIES = ("joint", "bits")
MOST_JOINT = 18  # bits up to which the joint entropy is the default


class FSQ(Quantizer):
    """A tanh bounds dimension i, which is rounded to levels[i] values in [-1, 1].

    Mentzer et al. 2023. Without a codebook and a loss, no code can collapse.

    Args:
        dim: the size of a vector, len(levels).
        levels: the number of values of each dimension, at least 2.
    """

    def __init__(self, dim: int, *, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        check_counts("levels", levels, 2)
        if dim != len(levels):
            raise ValueError(
                f"an fsq has one number of levels for each dimension: got {list(levels)} for "
                f"vectors of {dim}"
            )
        self.dim, self.levels = dim, tuple(levels)
        self.sizes = (math.prod(levels),)
        if self.sizes[0] >= 1 << 62:
            raise ValueError(
                f"levels {list(levels)} make 2^62 codes or more, which int64 can't number: take fewer "
                "levels, or several groups"
            )

    def forward(self, z: Tensor) -> Quantized:
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        levels = wide.new_tensor(self.levels)
        half = (levels - 1) * (1 + 1e-3) / 2  # the paper's appendix A.1
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(half.dtype)
        bounded = torch.tanh(wide + torch.atanh(offset / half)) * half - offset
        width = levels // 2
        rounded = bounded.round()
        found = straight_through(bounded, rounded) / width
        codes = ((rounded + width).long() * self._basis(z.device)).sum(1, keepdim=True)
        return Quantized(found.to(z.dtype), codes, wide.new_zeros(()) * wide.detach().sum(1))

    def lookup(self, codes: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=codes.device)
        level = codes // self._basis(codes.device) % levels
        width = levels // 2
        return (level - width).to(torch.get_default_dtype()) / width

    def _basis(self, device: torch.device) -> Tensor:
        basis = [math.prod(self.levels[:i]) for i in range(self.dim)]
        return torch.tensor(basis, device=device)


class LFQ(Quantizer):
    """The sign of each dimension: 2^dim codes with elements +-scale (Yu et al. 2023, MAGVIT-v2).

    The loss is commitment |z - sg(q)|^2 + entropy (H(code | z) - diversity H(code)), with entropies
    in nats of p(code | z) ~ exp(2 z^T code / temperature), a product over dimensions:

    - H(code | z) is exactly the sum of the bits' entropies, in O(M dim);
    - H(code) is the entropy of the batch's mean of p, which is not a product. "joint" is exact, and
      multiplies (2^(dim/2), M) and (M, 2^(dim/2)) matrices. "bits" is an upper bound, the sum of
      the bits' entropies (Zhao et al. 2024, BSQ).

    Args:
        dim: the bits of a code.
        scale: the codes' absolute value.
        temperature: the paper's tau.
        batch_entropy: "joint", "bits", or None for joint up to 18 bits.
    """

    def __init__(
        self,
        dim: int,
        *,
        scale: float = 1.0,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        temperature: float = 0.5,
        batch_entropy: str | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= dim <= 62 or not scale > 0 or not temperature > 0:
            raise ValueError(
                "an lfq has 1 to 62 bits, and a scale and a temperature above 0: got "
                f"{dim}, {scale} and {temperature}"
            )
        if batch_entropy is None:
            batch_entropy = "joint" if dim <= MOST_JOINT else "bits"
        if batch_entropy not in BATCH_ENTROPIES:
            raise ValueError(
                f"batch_entropy must be one of {', '.join(BATCH_ENTROPIES)}, got {batch_entropy!r}"
            )
        self.dim, self.sizes, self.scale = dim, (1 << dim,), scale
        self.entropy, self.diversity, self.commitment = entropy, diversity, commitment
        self.temperature, self.batch_entropy = temperature, batch_entropy

    def forward(self, z: Tensor) -> Quantized:
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        bits = wide > 0
        q = torch.where(bits, self.scale, -self.scale).to(wide.dtype)
        codes = (bits.long() << self._places(z.device)).sum(1, keepdim=True)
        loss = self.commitment * (wide - q).square().sum(1)
        if self.entropy > 0 and z.shape[0] > 0:
            logit = 4 * self.scale / self.temperature * wide
            # -p log p - (1 - p) log(1 - p), without the logarithm of a rounded 0.
            each = _entropy_of(logit)
            loss = loss + self.entropy * (each.sum(1) - self.diversity * self._of_batch(logit))
        return Quantized(straight_through(wide, q).to(z.dtype), codes, loss)

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes >> self._places(codes.device) & 1
        return (2 * bits - 1).to(torch.get_default_dtype()) * self.scale

    def _places(self, device: torch.device) -> Tensor:
        return torch.arange(self.dim - 1, -1, -1, device=device)

    def _of_batch(self, logit: Tensor) -> Tensor:
        """H(code), 0-d, in nats, of the whole batch over all processes."""
        p = torch.sigmoid(logit)
        if self.batch_entropy == "bits":
            mean = p.mean(0)
            return _entropy(torch.stack([mean, 1 - mean]))
        middle = self.dim // 2
        first, second = _products(p[:, :middle]), _products(p[:, middle:])
        with torch.autocast(p.device.type, enabled=False):
            return _entropy(first.t() @ second / p.shape[0])


def _products(p: Tensor) -> Tensor:
    """The probabilities of all 2^n values of n independent bits, (M, n) to (M, 2^n)."""
    joint = torch.ones_like(p[:, :0].sum(1, keepdim=True)) + 0 * p.sum(1, keepdim=True)
    for bit in p.split(1, 1):
        joint = torch.stack([joint * (1 - bit), joint * bit], 2).flatten(1)
    return joint


def _entropy(p: Tensor) -> Tensor:
    """-sum p log p in nats, of p averaged over all processes; the gradient is this process's."""
    if not is_split():
        return -torch.xlogy(p, p).sum()
    joined = joined_mean(p.detach().clone())
    log = joined.clamp_min(torch.finfo(joined.dtype).tiny).log()
    return -torch.xlogy(joined, joined).sum() - ((log + 1) * (p - p.detach())).sum()


def _entropy_of(logit: Tensor) -> Tensor:
    """The entropy of a bit with logit l, in nats: softplus(l) - l sigmoid(l)."""
    a = logit.abs()
    return torch.nn.functional.softplus(-a) + a * torch.sigmoid(-a)
