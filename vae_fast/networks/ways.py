"""Calls of a network with gradients for its parameters alone, for its input alone, or for each.

An adversarial loss needs a network's output several times: with gradients for its parameters, and
with gradients for its input alone, of other losses. The output is the same, so one pass is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Outputs = tuple[Tensor, ...]


def by_ways(
    network: Callable[[Tensor], Outputs], parameters: Sequence[nn.Parameter], *inputs: Tensor
) -> list[Outputs]:
    """``network(x)`` with gradients for ``parameters`` alone, then for each of ``inputs`` alone.

    Each way's backward computes what that way needs, so no gradient is computed in vain. Gradients
    cannot be differentiated again (RuntimeError).

    Args:
        network: returns a tuple of tensors. Of its parameters only ``parameters`` get gradients.
        inputs: tensors of equal values, of which the network runs on the first.
    """
    if not torch.is_grad_enabled():
        return [network(inputs[0])] * (1 + len(inputs))
    found = _Ways.apply(network, len(inputs), *inputs, *parameters)
    each = len(found) // (1 + len(inputs))
    return [found[i : i + each] for i in range(0, len(found), each)]


class _Ways(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: Callable[[Tensor], Outputs], count: int, *given: Any) -> Outputs:
        needs = ctx.needs_input_grad[2:]
        ctx.inputs, ctx.of_parameters = needs[:count], needs[count:]
        ctx.parameters = [
            p for p, need in zip(given[count:], ctx.of_parameters, strict=True) if need
        ]
        with torch.enable_grad():
            ctx.x = given[0].detach().requires_grad_(any(ctx.inputs))
            ctx.made = network(ctx.x)
        ctx.set_materialize_grads(False)
        ways = [[t.detach() for t in ctx.made] for _ in range(1 + count)]
        used = [bool(ctx.parameters), *ctx.inputs]
        ctx.mark_non_differentiable(
            *(t for way, use in zip(ways, used, strict=True) if not use for t in way)
        )
        return tuple(t for way in ways for t in way)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        each = len(ctx.made)

        def of(way: int, wanted: list[Tensor]) -> Iterator[Tensor | None]:
            pairs = [
                (t, g)
                for t, g in zip(ctx.made, upstream[way * each : (way + 1) * each], strict=True)
                if g is not None and t.requires_grad
            ]
            if not wanted or not pairs:
                return iter([None] * len(wanted))
            outputs, slopes = zip(*pairs, strict=True)
            return iter(
                torch.autograd.grad(outputs, wanted, slopes, retain_graph=True, allow_unused=True)
            )

        own = of(0, ctx.parameters)
        parameters = [next(own) if need else None for need in ctx.of_parameters]
        inputs = [next(of(i + 1, [ctx.x])) if need else None for i, need in enumerate(ctx.inputs)]
        return None, None, *inputs, *parameters


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
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
