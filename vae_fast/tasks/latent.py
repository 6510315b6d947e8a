"""Walks through the latent space: interpolation, traversals, attribute vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import Model, conditioning_of
from vae_fast.networks import device_and_dtype
from vae_fast.tasks.batched import check_condition, evaluating
from vae_fast.tasks.encode import features


def decode(model: Model, z: Tensor, y: Tensor | None = None, *, batch_size: int = 256) -> Tensor:
    """E[x | z] for z (N, latent_dim), and y (N,) for conditional models."""
    if y is None and conditioning_of(model) is not None:
        raise ValueError(
            f"{type(model).__name__} is conditional: codes are decoded under conditions, give y"
        )
    check_condition(model, y)
    check_count("batch_size", batch_size)
    if z.dim() < 2:
        raise ValueError(f"z must be (N, latent_dim), got {tuple(z.shape)}")
    if y is not None and len(y) != len(z):
        raise ValueError(f"z has {len(z)} rows, y has {len(y)} entries: they must be equal")
    device = device_and_dtype(model)[0]
    made = []
    with evaluating(model):
        for start in range(0, max(len(z), 1), batch_size):
            part = slice(start, start + batch_size)
            condition = () if y is None else (y[part].to(device),)
            params = model.decode(z[part].to(device), *condition)
            made.append(model.likelihood.mean(params).to(z.device))
    return torch.cat(made)


def linear(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Points on the lines from ``start`` to ``end``, (N, steps, D), both ends included."""
    t = _fractions(start, end, steps)
    return start.unsqueeze(1) * (1 - t) + end.unsqueeze(1) * t


def spherical(start: Tensor, end: Tensor, steps: int = 8) -> Tensor:
    """Points on the arcs from ``start`` to ``end``, (N, steps, D), both ends included.

    Direction and length change at a constant rate. So a walk between typical points of N(0, 1)
    stays among typical points, while a straight line passes near the origin (White 2016).
    """
    t = _fractions(start, end, steps)
    lengths = torch.stack([v.norm(dim=1, keepdim=True) for v in (start, end)], 1)  # (N, 2, 1)
    floor = torch.finfo(start.dtype).tiny
    u, v = start / lengths[:, 0].clamp_min(floor), end / lengths[:, 1].clamp_min(floor)
    # Half the angle by its tangent, which, unlike a cosine, is accurate near 0 and near pi.
    chords = [w.norm(dim=1, keepdim=True) for w in (u - v, u + v)]
    angle = 2.0 * torch.atan2(*chords).unsqueeze(1)
    # Parallel or opposite directions have no unique arc: take the straight line.
    straight = torch.sin(angle) < 1e-4
    safe = torch.where(straight, torch.ones_like(angle), angle)
    direction = (
        torch.sin((1 - t) * safe) * u.unsqueeze(1) + torch.sin(t * safe) * v.unsqueeze(1)
    ) / torch.sin(safe)
    length = lengths[:, :1] * (1 - t) + lengths[:, 1:] * t
    return torch.where(straight, linear(start, end, steps), length * direction)


def interpolate(
    model: Model,
    start: Tensor,
    end: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 8,
    path: str = "spherical",
) -> Tensor:
    """Interpolate between images through their codes: (N, steps, *input_shape).

    Args:
        start, end: (N, *input_shape). y: conditions of both, (N,), for conditional models.
        path: "spherical" or "linear".
    """
    if path not in ("linear", "spherical"):
        raise ValueError(f"path must be linear or spherical, got {path!r}")
    first, last = (features(model, x, y) for x in (start, end))
    z = (linear if path == "linear" else spherical)(first, last, steps)
    repeated = None if y is None else y.repeat_interleave(steps, dim=0)
    return decode(model, z.flatten(0, 1), repeated).unflatten(0, (len(start), steps))


def traverse(
    model: Model,
    z: Tensor,
    *,
    dimensions: Sequence[int] | Tensor | None = None,
    values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    y: Tensor | None = None,
) -> Tensor:
    """Decode one code (latent_dim,) with each dimension set to each value: (dimensions, values,
    *shape), under one condition y (1, ...)."""
    if z.dim() != 1:
        raise ValueError(f"traverse walks from one code (latent_dim,), got {tuple(z.shape)}")
    if isinstance(dimensions, Tensor):  # such as an argsort's
        dimensions = dimensions.tolist()
    dimensions = list(range(len(z))) if dimensions is None else list(dimensions)
    for dimension in dimensions:
        check_count("a dimension", dimension, 0)
    out_of_range = [d for d in dimensions if d >= len(z)]
    if out_of_range:
        raise ValueError(f"the code has dimensions 0 to {len(z) - 1}, not {out_of_range}")
    if y is not None and len(y) != 1:
        raise ValueError(f"one code is decoded under one condition, got {len(y)}")
    walks = z.repeat(len(dimensions), len(values), 1)
    for row, dimension in enumerate(dimensions):
        walks[row, :, dimension] = torch.tensor(values, dtype=z.dtype, device=z.device)
    flat = walks.flatten(0, 1)
    given = None if y is None else y.expand(len(flat), *y.shape[1:])
    return decode(model, flat, given).unflatten(0, (len(dimensions), len(values)))


def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """The direction of an attribute, (D,): the mean code with the attribute minus the mean without
    it.

    Args:
        codes: (N, D). has: bool (N,), from labels.
    """
    if has.dtype != torch.bool or has.shape != codes.shape[:1]:
        raise ValueError(f"has must be bool ({len(codes)},), got {has.dtype} of {tuple(has.shape)}")
    if not has.any() or has.all():
        raise ValueError("an attribute's direction needs samples with it and samples without")
    return codes[has].mean(0) - codes[~has].mean(0)


def apply_attribute(
    model: Model,
    x: Tensor,
    vector: Tensor,
    strength: float = 1.0,
    y: Tensor | None = None,
) -> Tensor:
    """x after adding ``strength`` times an attribute's direction to its code; negative values
    remove it."""
    codes = features(model, x, y)
    return decode(model, codes + strength * vector.to(codes), y)


def _fractions(start: Tensor, end: Tensor, steps: int) -> Tensor:
    if start.shape != end.shape or start.dim() != 2:
        raise ValueError(
            f"start and end must be (N, D) alike, got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    check_count("steps", steps, 2)
    return torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[None, :, None]
