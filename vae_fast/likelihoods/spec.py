"""The Python description of a likelihood; csrc/likelihoods/NAME.h has the kernels' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Target = Literal["unit", "real", "count", "level", "category"]
Truth = tuple[np.ndarray, list[np.ndarray]]
SUFFIXES = ("_probs", "_scale", "_log")


@dataclass(frozen=True)
class Spec:
    """A likelihood p(x | parameters) of one element, or with ``planes`` of one position.

    A ``target`` of kind "unit" lies in [0, 1], "real" is any number, "count" is 0, 1, 2, ...,
    "level" is an 8-bit value from 0 to 255, "category" is a class index. The functions below take
    targets in these units; callers divide bytes of "unit" and "real" data by 255.
    """

    name: str
    params: tuple[str, ...]
    """The parameters' names, in the order of the calls."""
    target: Target
    terms: Callable[..., Tensor]
    """``terms(*params, target)``: -log p in nats, elementwise, in plain PyTorch.

    The reference backend: as accurate as the kernels, twice differentiable, in float64 if a
    parameter is, else in float32. With ``planes``: one term per position, (N, ...)."""
    mean: Callable[..., Tensor]
    """``mean(*params)``: E[x], in the target's units, or the most probable class."""
    sample: Callable[..., Tensor]
    """``sample(*params, generator=None)``: a draw of x, on the parameters' device."""
    inputs: Callable[[Sequence[int], torch.dtype, torch.Generator], tuple[list[Tensor], Tensor]]
    """``inputs(shape, dtype, generator)``: random parameters and targets, including extreme ones,
    for tests and benchmarks. ``shape`` is the target's."""
    truth: Callable[..., Truth]
    """``truth(*params, target)``: -log p and its derivative by each parameter, as numpy longdouble
    arrays, from an independent formula with 100 digits. Slow: for tests with few elements."""
    planes: int = 0
    """The target's values per position, for likelihoods whose parameters are one tensor of planes
    along dim 1, in a number known only at the call; 0 for likelihoods of single elements."""

    @property
    def family(self) -> str:
        """The distribution's name: ``name`` without the suffix of its parametrisation."""
        for suffix in SUFFIXES:
            if self.name.endswith(suffix):
                return self.name.removesuffix(suffix)
        return self.name


def draw(shape: Sequence[int], generator: torch.Generator, low: float, high: float) -> Tensor:
    """Uniform numbers in float64 on the generator's device, for ``inputs``."""
    u = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)
    return low + (high - low) * u


def normals(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normals in float64 on the generator's device, for ``inputs``."""
    return torch.randn(
        tuple(shape), generator=generator, dtype=torch.float64, device=generator.device
    )


def as_floats(*params: Tensor, target: Tensor) -> list[Tensor]:
    """The parameters and the target in one dtype: float64 if a parameter is, else float32."""
    wide = any(p.dtype == torch.float64 for p in params)
    return [t.to(torch.float64 if wide else torch.float32) for t in (*params, target)]


def widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32, or in float64 if any of them is."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in tensors]


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in the open interval (0, 1), in the shape of ``like``, for ``sample``.

    They are float32 or float64: in half precision, 1 in 256 would be 0.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    u = torch.rand(like.shape, generator=generator, device=like.device, dtype=dtype)
    return u.clamp_min(0.25 * torch.finfo(dtype).eps)
