"""The sum of a tensor's squares, in fewer passes than torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_of_squares(t: Tensor) -> Tensor:
    """``t.square().sum()`` in one pass, and one for its gradient, where torch takes five."""
    found: Tensor = _SumOfSquares.apply(t)
    return found


class _SumOfSquares(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor) -> Tensor:
        return torch.dot(t.flatten(), t.flatten())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return 2 * grad * t

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return 2 * torch.dot(t.flatten(), tangent.flatten())
