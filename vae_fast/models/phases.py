"""Models with several losses, each of which trains its own parameters with an optimizer of its own.

Such a model has ``phases()``, and its ``loss`` takes ``phase=NAME``; ``loss(x)`` without one is the
sum over phases. An engine goes through them in their order, on the same batch: loss, backward,
optimizer, next.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from vae_fast.models.interface import HasPhases, Model, part_of


class Phase(NamedTuple):
    """``loss(x, phase=name)`` is to change ``parameters``, and has gradients for no others; at ``lr``
    times the run's learning rate.
    """

    name: str | None
    parameters: list[nn.Parameter]
    lr: float = 1.0


def phases_of(model: Model) -> list[Phase]:
    """The model's phases; for most, one without a name, over all parameters."""
    if isinstance(model, HasPhases):
        return model.phases()
    objective = part_of(model, "objective")
    if hasattr(objective, "phases"):
        return objective.phases(model)
    return [Phase(None, list(model.parameters()))]
