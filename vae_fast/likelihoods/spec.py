"""What Python says about a likelihood; its kernels' formulas stand in csrc/likelihoods/NAME.h."""

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
    """A likelihood p(x | parameters) of one element, or of one position where it has ``planes``.

    A ``target`` of "unit" lies in [0, 1], "real" is any number, "count" is 0, 1, 2, ..., "level" an
    8-bit value from 0 to 255, "category" a class's number. Targets come as numbers in these units:
    bytes of "unit" and "real" data are divided by 255 before.
    """

    name: str
    params: tuple[str, ...]
    """The names of the parameters, in the order of every call."""
    target: Target
    terms: Callable[..., Tensor]
    """``terms(*params, target)``: -log p in nats, elementwise, in plain PyTorch.

    It is the reference backend: accurate wherever the kernels are, differentiable twice, in float64
    if a parameter is, else in float32. With ``planes``: one term a position, (N, ...)."""
    mean: Callable[..., Tensor]
    """``mean(*params)``: E[x], in the target's units; of classes the most probable one."""
    sample: Callable[..., Tensor]
    """``sample(*params, generator=None)``: a draw of x, on the parameters' device."""
    inputs: Callable[[Sequence[int], torch.dtype, torch.Generator], tuple[list[Tensor], Tensor]]
    """``inputs(shape, dtype, generator)``: random parameters and a target that fits, with tails and
    edges among them, for tests and benchmarks. ``shape`` is the target's."""
    truth: Callable[..., Truth]
    """``truth(*params, target)``: -log p and its derivative by each parameter as arrays of numpy's
    longdouble, from a second formula in arithmetic of 100 digits. Slow: for tests of few elements."""
    planes: int = 0
    """Values of the target at one position, where the number of parameters is only known at the call
    (they come as one tensor of planes, along dim 1); 0 for likelihoods of single elements."""

    @property
    def family(self) -> str:
        """The distribution's name. The same distribution by other parameters has a suffix."""
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
    """The parameters and the target in one floating dtype: float64 if a parameter is, else float32.

    Half precision is widened, as in the kernels, and bytes become numbers that do not wrap.
    """
    wide = any(p.dtype == torch.float64 for p in params)
    return [t.to(torch.float64 if wide else torch.float32) for t in (*params, target)]


def widened(*tensors: Tensor) -> list[Tensor]:
    """Each in float32, or float64 if any of them is."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in tensors]


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in the open interval (0, 1), of the shape of ``like``, for ``sample``.

    float32 or float64: of fewer digits, 1 in 256 uniform numbers may be 0.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    u = torch.rand(like.shape, generator=generator, device=like.device, dtype=dtype)
    return u.clamp_min(0.25 * torch.finfo(dtype).eps)
