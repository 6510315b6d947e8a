"""Statistics of the latent units: KL per dimension, active units, and a warning of collapse."""

from __future__ import annotations

import math
from typing import Any

import torch

from vae_fast.data import Batches
from vae_fast.models.interface import DividesKL, Model, condition_of, divides_kl, is_probabilistic
from vae_fast.train.distributed import ALONE, World
from vae_fast.train.sharded import run_whole

SAMPLES = 2048  # of the validation data
ACTIVE_VARIANCE = 0.01


@torch.no_grad()
def latent_statistics(model: Model, batches: Batches, world: World = ALONE) -> dict[str, Any]:
    """kl_per_dimension (nats, mean over samples) and active_units, of some 2048 samples.

    A unit is active if the variance of its posterior mean over the data is above 0.01 (Burda et
    al. 2016, section 3). With several ranks, each takes its part, and the numbers are over all
    parts. Empty for models without a Gaussian posterior of one latent vector.
    """
    if not (is_probabilistic(model) and isinstance(model, DividesKL)):
        return {}
    if not divides_kl(model):
        return {}
    of_batches, seen = [], 0
    kl: Any = 0.0
    for images, labels in batches:
        found, of_batch = _codes_and_kl(model, images, labels)
        of_batches.append(found.double())
        kl = kl + of_batch.double() * len(images)
        seen += len(images)
        # All ranks stop at the same batch: their shares differ only in the last one.
        if seen * world.size >= SAMPLES:
            break
    means = torch.cat(of_batches)
    if means.dim() != 2 or not isinstance(kl, torch.Tensor):
        return {}
    count = float(world.sum(means.new_tensor(float(seen))))
    if count < 2:
        return {}
    kl, centre = world.sum(kl) / count, world.sum(means.sum(0)) / count
    variance = world.sum((means - centre).square().sum(0)) / (count - 1)
    return {
        "active_units": int((variance > ACTIVE_VARIANCE).sum()),
        "kl_per_dimension": [round(value, 4) for value in kl.tolist()],
    }


def _codes_and_kl(
    model: Model, images: torch.Tensor, labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The posterior's means, (N, D), and the batch's mean KL of each dimension, (D,)."""

    def codes_and_kl() -> tuple[torch.Tensor, torch.Tensor]:
        condition = condition_of(model, images, labels)
        return model.features(images, *condition), model.kl_per_dimension(images, *condition)

    return run_whole(model, codes_and_kl)


def collapse_warning(statistics: dict[str, Any]) -> str | None:
    """A sentence if fewer than a tenth of the units, or none, is active."""
    if not statistics:
        return None
    active, units = statistics["active_units"], len(statistics["kl_per_dimension"])
    if not all(map(math.isfinite, statistics["kl_per_dimension"])):
        return None  # not a collapse, but a loss that is not finite
    if active >= max(1, units // 10):
        return None
    return (
        f"warning: the posterior has collapsed: {active} of {units} latent units are active, and "
        f"the KL is {sum(statistics['kl_per_dimension']):.2f} nats. Let beta warm up "
        "(--objective.schedule linear), or give free bits (--objective.free-bits 0.1)"
    )
