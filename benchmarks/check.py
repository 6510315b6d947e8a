"""Compare every contender's result with float64 before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.case import Outputs, WrongResult

# Wide enough for eager PyTorch in that dtype, whose intermediate results are rounded to it; a wrong
# formula, scale or reduction is further off. (Accuracy itself is what tests/ops is about.)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float64: 1e-10}

# Elements in float64 at a time, so that the check of a large case fits the memory.
CHUNK = 1 << 22


def close(name: str, found: float, truth: float, tolerance: float) -> None:
    """Raise WrongResult unless a scalar is within a relative ``tolerance`` of the float64 one."""
    if not abs(found - truth) <= tolerance * max(abs(truth), 1e-30):  # NaN is not close either
        raise WrongResult(f"{name} is {found:.6g}, and {truth:.6g} in float64")


def all_close(name: str, found: torch.Tensor, truth: torch.Tensor, tolerance: float) -> None:
    """Raise WrongResult unless every element is within ``tolerance`` of the largest."""
    if found.numel() != truth.numel():
        raise WrongResult(f"{name} has shape {tuple(found.shape)}, not {tuple(truth.shape)}")
    error = (found.double() - truth).abs().max().item()
    largest = max(truth.abs().max().item(), 1e-30)
    if not error <= tolerance * largest:
        raise WrongResult(
            f"{name} is {error:.3g} away from float64 somewhere, where the largest is {largest:.3g}"
        )


def chunks(*tensors: torch.Tensor | None) -> Iterator[list[torch.Tensor | None]]:
    """The tensors' elements, a chunk of each at a time; None stays None."""
    flat = [None if t is None else t.detach().reshape(-1) for t in tensors]
    total = next(t.numel() for t in flat if t is not None)
    for begin in range(0, total, CHUNK):
        yield [None if t is None else t[begin : begin + CHUNK] for t in flat]


Terms = Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]


def check_sum(
    name: str,
    inputs: Sequence[torch.Tensor],
    value: torch.Tensor | None,
    grads: Sequence[torch.Tensor],
    terms: Terms,
) -> float:
    """Compare a sum over elements, and its gradients, with float64; returns the float64 sum.

    Args:
        terms: float64 inputs to (the value of each element, its gradients).
        value, grads: what was computed; None or empty where it was not.
    """
    tolerance, total = TOLERANCE[inputs[0].dtype], 0.0
    for part in chunks(*inputs, *grads):
        arguments, found = part[: len(inputs)], part[len(inputs) :]
        truth, slopes = terms(*(in_float64(t) for t in arguments))
        total += truth.sum().item()
        if grads:
            for i, (grad, slope) in enumerate(zip(found, slopes, strict=True)):
                all_close(f"{name}: gradient {i}", grad, slope, tolerance)
    if value is not None:
        close(name, value.item(), total, tolerance)
    return total


def in_float64(t: torch.Tensor) -> torch.Tensor:
    """uint8 stands for x / 255, as everywhere in vae_fast."""
    return t.double() / 255 if t.dtype == torch.uint8 else t.double()


def check_noise(mu: torch.Tensor, logvar: torch.Tensor, z: torch.Tensor) -> None:
    """Raise WrongResult unless (z - mu) / sigma looks like standard normals: their mean and
    variance within six standard errors, and no two neighbours alike."""
    count, mean, square, repeated = mu.numel(), 0.0, 0.0, 0
    for m, lv, sample in chunks(mu, logvar, z):
        eps = (sample.double() - m.double()) * torch.exp(-0.5 * lv.double())
        mean += eps.sum().item() / count
        square += eps.square().sum().item() / count
        repeated += (eps[1:] == eps[:-1]).sum().item()
    # A sample rounded to a dtype has its noise rounded too: allow for it.
    slack = TOLERANCE[mu.dtype]
    if not abs(mean) <= 6 / math.sqrt(count) + slack:
        raise WrongResult(f"the noise has mean {mean:.4g} over {count} draws")
    if not abs(square - 1) <= 6 * math.sqrt(2 / count) + slack:
        raise WrongResult(f"the noise has mean square {square:.4g} over {count} draws")
    if repeated > count // 100 + 8:
        raise WrongResult(f"{repeated} of {count} draws repeat their neighbour")


def grads_or_nothing(outputs: Outputs, wanted: int) -> Sequence[torch.Tensor]:
    if outputs.grads and len(outputs.grads) != wanted:
        raise WrongResult(f"{len(outputs.grads)} gradients, where {wanted} are wanted")
    return outputs.grads
