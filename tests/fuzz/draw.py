"""Random arguments: shapes, numbers, dtypes and memory layouts, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("sum", "batchmean", "none")


class Draw:
    """One call's random choices. ``seed`` alone decides them."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))

    def one_of(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(choices)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def size(self) -> int:
        """Mostly small; now and then past a vector, a block and a chunk of the kernels."""
        most = self.random.choices((3, 9, 40, 1100, 5000), (4, 8, 6, 1, 1))[0]
        return self.random.randint(1, most)

    def shape(self, least: int = 1, most: int = 4) -> tuple[int, ...]:
        """A shape of at most some 20,000 elements, seldom of none."""
        dims = [self.size() for _ in range(self.random.randint(least, most))]
        while torch.Size(dims).numel() > 20_000:
            largest = dims.index(max(dims))
            dims[largest] = max(1, dims[largest] // 7)
        if self.chance(0.04):
            dims[self.random.randrange(len(dims))] = 0
        return tuple(dims)

    def floats(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.5) -> Tensor:
        """Of the size networks give, a few far from it, and seldom a NaN; in any layout."""
        t = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        if t.numel() and self.chance(0.3):
            t.view(-1)[self.random.randrange(t.numel())] *= 8
        if t.numel() and self.chance(0.03):
            t.view(-1)[self.random.randrange(t.numel())] = float("nan")
        return self.laid_out(t.to(dtype))

    def unit(self, shape: Sequence[int], dtype: torch.dtype, edge: float = 0.0) -> Tensor:
        """Numbers in [edge, 1 - edge], seldom the ends themselves."""
        t = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        if self.chance(0.3):
            t = t.round()
        return self.laid_out((t * (1 - 2 * edge) + edge).to(dtype))

    def target(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What a Bernoulli's target may be: floating in [0, 1], bytes or bool."""
        kind = self.one_of(("same", "float", "uint8", "bool"))
        if kind in ("same", "float"):
            return self.unit(shape, dtype if kind == "same" else self.one_of(FLOATS))
        bytes_ = torch.randint(0, 256, shape, generator=self.generator, dtype=torch.uint8)
        return self.laid_out(bytes_ if kind == "uint8" else bytes_ > 127)

    def integers(self, shape: Sequence[int], below: int) -> Tensor:
        return self.laid_out(torch.randint(0, below, shape, generator=self.generator))

    def key(self) -> Tensor:
        return torch.tensor([self.random.getrandbits(64) - 2**63 for _ in range(2)])

    def laid_out(self, t: Tensor) -> Tensor:
        """``t``'s values contiguous, transposed, sliced, offset or channels-last."""
        kind = self.one_of(("contiguous",) * 4 + ("transposed", "sliced", "offset", "last"))
        if kind == "transposed" and t.dim() > 1:
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "sliced" and t.dim():
            wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1)[..., 1::2]
            return wide.copy_(t)
        if kind == "offset":
            return t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t)
        if kind == "last" and t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        return t


def described(value: Any) -> str:
    """Python that makes the value again; of a large tensor, its kind."""
    if not isinstance(value, Tensor):
        return repr(value)
    strides = "" if value.is_contiguous() else f" of strides {value.stride()}"
    kind = f"{value.dtype}, {tuple(value.shape)}, {value.device}{strides}"
    if value.numel() > 48 or value.device.type == "meta":
        return f"<{kind}>"
    shape = tuple(value.shape)
    return f"torch.tensor({value.flatten().tolist()}, dtype={value.dtype}).view({shape})" + (
        f"  # {kind}" if strides else ""
    )
