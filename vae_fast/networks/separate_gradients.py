"""One forward pass of a network whose output several losses use, each with gradients of its own.

One adversarial loss trains the discriminator's parameters; others differentiate its output for its
input alone. All need the same output, so one forward pass is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Outputs = tuple[Tensor, ...]


def separate_gradients(
    network: Callable[[Tensor], Outputs], parameters: Sequence[nn.Parameter], *inputs: Tensor
) -> list[Outputs]:
    """Copies of ``network(x)``: one has gradients for ``parameters`` alone, and then there is one for
    each of ``inputs``, which has gradients for that input alone.

    The backward of each copy computes its own gradients only. They cannot be differentiated again
    (RuntimeError).

    Args:
        network: returns a tuple of tensors. Of its parameters only ``parameters`` get gradients.
        inputs: tensors of equal values, of which the network runs on the first.
    """
    if not torch.is_grad_enabled():
        return [network(inputs[0])] * (1 + len(inputs))
    flat = _SeparateGradients.apply(network, len(inputs), *inputs, *parameters)
    size = len(flat) // (1 + len(inputs))
    return [flat[i : i + size] for i in range(0, len(flat), size)]


class _SeparateGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, network: Callable[[Tensor], Outputs], count: int, *tensors: Any
    ) -> Outputs:
        needs = ctx.needs_input_grad[2:]
        ctx.inputs, ctx.of_parameters = needs[:count], needs[count:]
        ctx.parameters = [
            p for p, need in zip(tensors[count:], ctx.of_parameters, strict=True) if need
        ]
        with torch.enable_grad():
            ctx.x = tensors[0].detach().requires_grad_(any(ctx.inputs))
            ctx.outputs = network(ctx.x)
        ctx.set_materialize_grads(False)
        copies = [[t.detach() for t in ctx.outputs] for _ in range(1 + count)]
        used = [bool(ctx.parameters), *ctx.inputs]
        ctx.mark_non_differentiable(
            *(t for copy, use in zip(copies, used, strict=True) if not use for t in copy)
        )
        return tuple(t for copy in copies for t in copy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        size = len(ctx.outputs)

        def gradients(copy: int, wanted: list[Tensor]) -> Iterator[Tensor | None]:
            pairs = [
                (t, g)
                for t, g in zip(ctx.outputs, upstream[copy * size : (copy + 1) * size], strict=True)
                if g is not None and t.requires_grad
            ]
            if not wanted or not pairs:
                return iter([None] * len(wanted))
            outputs, slopes = zip(*pairs, strict=True)
            return iter(
                torch.autograd.grad(outputs, wanted, slopes, retain_graph=True, allow_unused=True)
            )

        own = gradients(0, ctx.parameters)
        parameters = [next(own) if need else None for need in ctx.of_parameters]
        inputs = [
            next(gradients(i + 1, [ctx.x])) if need else None for i, need in enumerate(ctx.inputs)
        ]
        return None, None, *inputs, *parameters


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which computations have no gradient for ``parameters``."""
    changed = [p for p in parameters if p.requires_grad]
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)


def call_frozen(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)``, with gradients for the inputs but not for its parameters."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, constants, inputs)
