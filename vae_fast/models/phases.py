"""Models with several losses, each with its own parameters and optimizer.

Such a model has ``phases()``, and its ``loss`` takes ``phase=NAME``; ``loss(x)`` without a phase is
the sum over phases. On each batch an engine runs the phases in order: loss, backward, optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from vae_fast.models.interface import HasPhases, Model, part_of


def _always() -> bool:
    return True


class Phase(NamedTuple):
    """``loss(x, phase=name)`` has gradients only for ``parameters``, trained at ``lr`` times the
    run's learning rate.

    An engine asks ``is_due()`` when the phase's turn comes, and leaves the phase out if it is not: a
    step with gradients of zero would change Adam's bias correction.
    """

    name: str | None
    parameters: list[nn.Parameter]
    lr: float = 1.0
    is_due: Callable[[], bool] = _always


def phases_of(model: Model) -> list[Phase]:
    """The model's phases. Most models have one, without a name, over all parameters."""
    if isinstance(model, HasPhases):
        return model.phases()
    objective = part_of(model, "objective")
    if hasattr(objective, "phases"):
        return objective.phases(model)
    return [Phase(None, list(model.parameters()))]
