"""What the latent units carry: KL per dimension, active units, and a word on collapse."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vae_fast.data import Batches
from vae_fast.models.batched import condition_of

SAMPLES = 2048  # looked at, of the validation data
ACTIVE_VARIANCE = 0.01


@torch.no_grad()
def latent_statistics(model: nn.Module, batches: Batches) -> dict[str, Any]:
    """kl_per_dimension (nats, mean over samples) and active_units, of up to 2048 samples.

    A unit is active if the variance of its posterior mean over the data is above 0.01 (Burda et
    al. 2016, section 3). Empty for models without a Gaussian posterior of one latent vector.
    """
    if not (getattr(model, "is_probabilistic", False) and hasattr(model, "kl_per_dimension")):
        return {}
    means, kl, seen = [], 0.0, 0
    for images, labels in batches:
        condition = condition_of(model, images, labels)
        means.append(model.features(images, *condition).float())
        kl = kl + model.kl_per_dimension(images, *condition).float() * len(images)
        seen += len(images)
        if seen >= SAMPLES:
            break
    means = torch.cat(means)
    if means.dim() != 2 or len(means) < 2 or not isinstance(kl, torch.Tensor):
        return {}
    active = int((means.var(0) > ACTIVE_VARIANCE).sum())
    return {
        "active_units": active,
        "kl_per_dimension": [round(value, 4) for value in (kl / seen).tolist()],
    }


def collapse_warning(statistics: dict[str, Any]) -> str | None:
    """A sentence if fewer than a tenth of the units, or none, is active."""
    if not statistics:
        return None
    active, units = statistics["active_units"], len(statistics["kl_per_dimension"])
    if active >= max(1, units // 10):
        return None
    return (
        f"warning: the posterior has collapsed: {active} of {units} latent units are active, and "
        f"the KL is {sum(statistics['kl_per_dimension']):.2f} nats. Let beta warm up "
        "(--objective.schedule linear), or give free bits (--objective.free-bits 0.1)"
    )
