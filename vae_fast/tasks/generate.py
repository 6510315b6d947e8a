"""Generate, reconstruct and denoise data with a model."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import Model, conditioning_of
from vae_fast.networks import device_and_dtype
from vae_fast.tasks.batched import check_condition, evaluating, in_batches
from vae_fast.tasks.samplers import Sampler, draw_from


def generate(
    model: Model,
    n: int,
    y: Tensor | None = None,
    *,
    temperature: float = 1.0,
    seed: int | None = None,
    draw: bool = False,
    batch_size: int = 256,
    sampler: Sampler | None = None,
) -> Tensor:
    """E[x | z] for n draws of z from the prior, (n, *input_shape), on the CPU.

    Args:
        y: the conditions, n entries, for conditional models.
        temperature: factor of z's standard deviation; below 1, samples are more typical and less
            varied.
        seed: the same seed gives the same samples; None draws from torch's generator.
        draw: for sequence models: draw each step from its distribution, as usual for text, instead
            of taking its mean or most probable value.
        sampler: draws z instead of the prior (``fit_sampler``).
    """
    check_condition(model, y)
    check_count("n", n, 0)
    check_count("batch_size", batch_size)
    if not temperature >= 0:
        raise ValueError(f"temperature can't be negative, got {temperature}")
    if y is not None and len(y) != n:
        raise ValueError(f"n is {n}, but y has {len(y)} entries: they must be equal")
    device = device_and_dtype(model)[0]
    options: dict[str, object] = {} if temperature == 1.0 else {"temperature": temperature}
    if draw:
        options["draw"] = True
    if y is None and (condition := conditioning_of(model)) is not None:
        y = condition.default(n, device)  # for all batches
    made = []
    with evaluating(model), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for start in range(0, max(n, 1), batch_size):
            count = min(batch_size, n - start)
            given = () if y is None else (y[start : start + count].to(device),)
            if sampler is not None:
                made.append(draw_from(sampler, model, count, temperature, *given).cpu())
            else:
                made.append(model.sample(count, *given, **options).cpu())
    return torch.cat(made)


def reconstruct(
    model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256
) -> Tensor:
    """E[x | z] at the posterior's mean, of the shape of x."""
    return in_batches(model, model.reconstruct, x, y, batch_size=batch_size)


def denoise(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 1,
    batch_size: int = 256,
) -> Tensor:
    """Denoise x by reconstructing it ``steps`` times; the result has the shape of x.

    Each step reconstructs the result of the last one (Rezende et al. 2014, appendix F, at the
    means).
    """
    check_count("steps", steps)
    made = reconstruct(model, x, y, batch_size=batch_size)
    for _ in range(steps - 1):
        classes = not made.is_floating_point()  # classes of pixels, in x's units
        made = reconstruct(model, made.to(x.dtype) if classes else made, y, batch_size=batch_size)
    return made
