"""Subnormal moments of an optimizer, on which a CPU computes a hundred times slower, become zero.

Weights of a ReLU that is off for all samples have no gradient. Their first moment shrinks by a tenth with
every step and is subnormal after some 800 steps.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

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


@torch.no_grad()
def flush_subnormals(optimizer: torch.optim.Optimizer, among: set[Tensor] | None = None) -> bool:
    """Every ``FLUSHED_EVERY`` steps of a parameter on a CPU, set its subnormal moments to zero.

    The step is the one that the optimizer counts, so a resumed run flushes at the same steps.

    Args:
        among: parameters; None for all of the optimizer's.

    Returns whether a moment was looked at.
    """
    found = False
    for group in optimizer.param_groups:
        eps = group.get("eps")  # a tuple, for Adafactor
        if not isinstance(eps, float) or eps < LEAST_EPS:
            continue
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            step = state.get("step")
            if not p.is_cpu or step is None or int(step) % FLUSHED_EVERY != 0:
                continue
            if among is not None and p not in among:
                continue
            for value in state.values():
                if not (isinstance(value, Tensor) and value.shape == p.shape):
                    continue
                value = getattr(value, "_local_tensor", value)  # of a sharded one
                tiny = torch.finfo(value.dtype).tiny if value.is_floating_point() else 1.0
                if tiny <= LARGEST_TINY:
                    found = True
                    torch.hardshrink(value, tiny, out=value)
    return found


def watch(module: nn.Module) -> None:
    """Flush the moments of ``module``'s parameters after steps of any of torch's optimizers."""
    _watched.add(module)
    if not _state["is_hooked"]:
        _state["is_hooked"] = True
        register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if torch.compiler.is_compiling():
        return
    among: set[Tensor] = {p for module in _watched for p in module.parameters()}
    if among and flush_subnormals(optimizer, among) and not _state["has_said"]:
        _state["has_said"] = True
        logger.info("Subnormal moments of the optimizer become zero every %d steps", FLUSHED_EVERY)
