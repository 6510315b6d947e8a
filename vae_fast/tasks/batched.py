"""Apply a model to data in batches, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import (
    Model,
    condition_of,
    conditioning_of,
    is_probabilistic,
    uses_labels,
)
from vae_fast.networks import device_and_dtype


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; restores each module's mode on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def in_batches(
    model: nn.Module,
    function: Callable[..., Tensor],
    x: Tensor,
    y: Tensor | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """``function(x, *condition)`` over batches on the model's device, concatenated on x's device.

    x may be rows of a sparse matrix (``vae_fast.data.sparse_rows``); each batch becomes dense.
    """
    check_count("batch_size", batch_size)
    if y is not None and len(y) != len(x):
        raise ValueError(f"x has {len(x)} samples, y has {len(y)}: they must be equal")
    device = device_and_dtype(model)[0]
    results = []
    with evaluating(model):
        for start in range(0, max(len(x), 1), batch_size):
            part = x[start : start + batch_size].to(device)
            if not isinstance(part, Tensor):  # sparse rows
                part = part.to_dense()
            label = None if y is None else y[start : start + batch_size].to(device)
            results.append(function(part, *condition_of(model, part, label)).to(x.device))
    return torch.cat(results)


def check_condition(model: nn.Module, y: Tensor | None) -> None:
    """ValueError for a condition ``y`` of a model that takes none."""
    if y is not None and conditioning_of(model) is None and not uses_labels(model):
        raise ValueError(
            f"{type(model).__name__} is not conditional, and y was given: leave it out"
        )


def needs_density(model: Model, what: str) -> None:
    """Raise TypeError for a model whose z has no density, such as an autoencoder."""
    if not is_probabilistic(model):
        raise TypeError(
            f"{what} needs a model with a posterior and a prior; {type(model).__name__} has none"
        )
