"""The gradient of the Bernoulli's -log p by the native op, differentiable again.

Hamiltonian dynamics and gradient penalties differentiate this gradient. Torch's graph of the plain
formula has over twenty ops; the gradient's own derivatives need six.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.likelihoods import SPECS

SPEC = SPECS["bernoulli"]


class BernoulliSlope(torch.autograd.Function):
    """``upstream`` d nll / d logits, for ``upstream`` (N,) or 0-d and logits in the target's shape.

    Args:
        native: (upstream, logits, target) to the gradient, by the native op.
        scale: the factor of the reduction, 1 / N for a mean over the batch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        native: Callable[[Tensor, Tensor, Tensor], Tensor],
        scale: float,
        upstream: Tensor,
        logits: Tensor,
        target: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(upstream, logits, target)
        ctx.scale = scale
        return native(upstream, logits, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        upstream, logits, target = ctx.saved_tensors
        p, q = torch.sigmoid(logits), torch.sigmoid(-logits)  # 1 - p would lose p's last bits
        of_upstream = of_logits = None
        if ctx.needs_input_grad[2]:
            t = reference.as_target(SPEC, target, logits.dtype)
            slope = grad * ((1 - t) * p - t * q)
            of_upstream = ctx.scale * (slope.flatten(1).sum(1) if upstream.dim() else slope.sum())
        if ctx.needs_input_grad[3]:
            each = upstream.view(-1, *[1] * (logits.dim() - 1)) if upstream.dim() else upstream
            of_logits = grad * p * q * (each if ctx.scale == 1.0 else each * ctx.scale)
        return None, None, of_upstream, of_logits, None
