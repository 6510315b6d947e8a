"""A model's gradients against differences of its loss, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LENGTH = 1e-6  # of the differences' steps


def check_gradients(
    model: nn.Module,
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor] | None = None,
    directions: int = 2,
) -> None:
    """Compare the gradient along random directions with central differences of the loss.

    A direction moves all parameters at once, each scaled to change the loss by the same amount, so a
    wrong element in any of them shows. Every parameter must have a gradient.

    Args:
        loss: 0-d, of the model as it is, with the same noise each time.
        parameters: of the model, those to look at; all if not given.
    """
    wanted = None if parameters is None else {id(p) for p in parameters}
    named = {n: p for n, p in model.named_parameters() if wanted is None or id(p) in wanted}
    assert all(p.dtype == torch.float64 for p in named.values())
    gradients = dict(zip(named, torch.autograd.grad(loss(), list(named.values())), strict=True))
    assert all(g.any() for g in gradients.values()), [
        n for n, g in gradients.items() if not g.any()
    ]
    for _ in range(directions):
        steps = {n: torch.randn_like(g) / g.norm() for n, g in gradients.items()}
        largest = max(float(step.abs().max()) for step in steps.values())
        along = sum((gradients[n] * step).sum() for n, step in steps.items()) / largest
        ends = [_moved(named, steps, by, loss) for by in (LENGTH / largest, -LENGTH / largest)]
        difference = (ends[0] - ends[1]) / (2.0 * LENGTH)
        # Each parameter's part is about 1 / largest; a thousandth of that is to be seen.
        torch.testing.assert_close(difference, along, rtol=0, atol=1e-3 / largest)


@torch.no_grad()
def _moved(
    named: dict[str, Tensor], steps: dict[str, Tensor], by: float, loss: Callable[[], Tensor]
) -> Tensor:
    """The loss with every parameter moved; they are put back to the bit."""
    before = {n: p.clone() for n, p in named.items()}
    for n, p in named.items():
        p.add_(steps[n], alpha=by)
    value = loss()
    for n, p in named.items():
        p.copy_(before[n])
    return value
