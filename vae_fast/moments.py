"""Subnormal moments of an optimizer, on which a CPU computes a hundred times slower, become zero.

Weights of a ReLU that is off for all samples have no gradient. Their first moment shrinks by a tenth with
every step and is subnormal after some 800 steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

logger = logging.getLogger("vae_fast")

FLUSHED_EVERY = 32  # steps
LEAST_EPS = 1e-15  # beside a smaller eps, subnormal moments are not negligible
LARGEST_TINY = torch.finfo(torch.float32).tiny  # float16's subnormal numbers are not negligible
# Modules whose parameters' moments are flushed under any optimizer of torch.
_watched: WeakSet[nn.Module] = WeakSet()
_state = {"is_hooked": False, "has_said": False}
# For each optimizer, the parameter that took the most steps, and how many.
_leaders: WeakKeyDictionary[torch.optim.Optimizer, tuple[Tensor | None, int]] = WeakKeyDictionary()


@torch.no_grad()
def flush_subnormals(
    optimizer: torch.optim.Optimizer, among: Callable[[], set[Tensor]] | None = None
) -> bool:
    """Call after each of the optimizer's steps: every ``FLUSHED_EVERY`` of them set the subnormal
    moments of parameters on a CPU to zero.

    The steps are those that the optimizer counts, so a resumed run flushes at the same ones. Between
    them a call reads the count of one parameter.

    Args:
        among: gives the parameters; None for all of the optimizer's.

    Returns whether a moment was looked at.
    """
    groups = [group for group in optimizer.param_groups if _is_large(group.get("eps"))]
    if not groups or not _is_due(optimizer):
        return False
    found, chosen = False, None if among is None else among()
    for group in groups:
        for p in group["params"]:
            if not p.is_cpu or (chosen is not None and p not in chosen):
                continue
            for value in optimizer.state.get(p, {}).values():
                if not (isinstance(value, Tensor) and value.shape == p.shape):
                    continue
                value = getattr(value, "_local_tensor", value)  # of a sharded one
                tiny = torch.finfo(value.dtype).tiny if value.is_floating_point() else 1.0
                if tiny <= LARGEST_TINY:
                    found = True
                    torch.hardshrink(value, tiny, out=value)
    return found


def _is_large(eps: Any) -> bool:
    return isinstance(eps, float) and eps >= LEAST_EPS  # it is a tuple, for Adafactor


def _is_due(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has taken a multiple of ``FLUSHED_EVERY`` steps."""
    leader, before = _leaders.get(optimizer, (None, 0))
    steps = _steps_of(optimizer, leader)
    if steps <= before:  # none, or it took no step: look at all
        everyone = [p for group in optimizer.param_groups for p in group["params"]]
        leader = max(everyone, key=lambda p: _steps_of(optimizer, p), default=None)
        steps = _steps_of(optimizer, leader)
    _leaders[optimizer] = (leader, steps)
    return steps > 0 and steps % FLUSHED_EVERY == 0


def _steps_of(optimizer: torch.optim.Optimizer, p: Tensor | None) -> int:
    """The steps of a parameter on a CPU; 0 where the optimizer counts none."""
    step = optimizer.state[p].get("step") if p is not None and p in optimizer.state else None
    return 0 if step is None or not cast(Tensor, p).is_cpu else int(step)


def watch(module: nn.Module) -> None:
    """Flush the moments of ``module``'s parameters after steps of any of torch's optimizers."""
    _watched.add(module)
    if not _state["is_hooked"]:
        _state["is_hooked"] = True
        register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if not _watched or not flush_subnormals(optimizer, _parameters_watched):
        return
    if not _state["has_said"]:
        _state["has_said"] = True
        logger.info("Subnormal moments of the optimizer become zero every %d steps", FLUSHED_EVERY)


# A compiled step calls this between its graphs. (torch breaks the graph at every optimizer's step.)
setattr(_after_step, "_torchdynamo_disable", True)  # noqa: B010


def _parameters_watched() -> set[Tensor]:
    return {p for module in _watched for p in module.parameters()}
