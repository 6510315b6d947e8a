"""What a model itself has to say about data: a classifier's accuracy, a discriminator's."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from vae_fast.data import Batches
from vae_fast.train.distributed import World
from vae_fast.train.sharded import run_whole


@torch.no_grad()
def diagnostics(model: nn.Module, batches: Batches, world: World) -> dict[str, float]:
    """Means over the data of what ``model.diagnostics(x, y)`` gives for each sample.

    That is a dictionary of tensors (N,), the same names for every batch; y may be None. Most
    models have no such method, and no diagnostics.
    """
    if not hasattr(model, "diagnostics"):
        return {}
    names, sums, samples = (), 0.0, 0
    for images, labels in batches:
        found = run_whole(model, partial(model.diagnostics, images, labels))
        if not found:
            return {}
        names, samples = tuple(found), samples + len(images)
        sums = sums + torch.stack([values.double().sum() for values in found.values()])
    *sums, samples = world.sum(torch.cat([sums, sums.new_tensor([samples])])).tolist()
    return {name: value / samples for name, value in zip(names, sums, strict=True)}
