"""Models with several losses, each with its own parameters and optimizer.

Such a model has ``phases()``, and its ``loss`` takes ``phase=NAME``; ``loss(x)`` without a phase is
the sum over phases. On each batch an engine runs the phases in order: loss, backward, optimizer.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from vae_fast.models.interface import HasPhases, Model, part_of


class Phase(NamedTuple):
    """``loss(x, phase=name)`` has gradients only for ``parameters``, trained at ``lr`` times the
    run's learning rate."""

    name: str | None
    parameters: list[nn.Parameter]
    lr: float = 1.0


def phases_of(model: Model) -> list[Phase]:
    """The model's phases. Most models have one, without a name, over all parameters."""
    if isinstance(model, HasPhases):
        return model.phases()
    objective = part_of(model, "objective")
    if hasattr(objective, "phases"):
        return objective.phases(model)
    return [Phase(None, list(model.parameters()))]
