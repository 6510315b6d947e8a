"""A model's own measures on data, such as a classifier's or a discriminator's accuracy."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from vae_fast.data import Batches
from vae_fast.models.interface import HasDiagnostics, Model
from vae_fast.train.distributed import World
from vae_fast.train.sharded import run_whole


@torch.no_grad()
def diagnostics(model: Model, batches: Batches, world: World) -> dict[str, float]:
    """The means over the data of the values that ``model.diagnostics(x, y)`` returns.

    It returns a dictionary of tensors (N,), shorter if a value is not known for every sample, with
    the same names for every batch; y may be None. Most models have no such method.
    """
    if not isinstance(model, HasDiagnostics):
        return {}
    names: tuple[str, ...] = ()
    totals: Any = 0.0
    for images, labels in batches:
        found = run_whole(model, partial(model.diagnostics, images, labels))
        if not found:
            return {}
        names, sums = tuple(found), torch.stack([v.double().sum() for v in found.values()])
        totals = totals + torch.stack([sums, sums.new_tensor([len(v) for v in found.values()])])
    sums, counts = world.sum(totals).tolist()
    return {name: s / n for name, s, n in zip(names, sums, counts, strict=True) if n > 0}
