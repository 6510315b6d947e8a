"""What the autograd wrappers share: when they are needed, and that they differentiate once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

Maybe = torch.Tensor | None
_functorch = torch._C._functorch
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def needs_grad(*tensors: Maybe) -> bool:
    """Whether a call must go through autograd.

    Forward-mode derivatives do too: the wrappers have none and say so, whereas the bare ops
    would drop the tangents and return zeros.
    """
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return any(_wraps_grad(t) for t in tensors) or forward_ad._current_level >= 0
    return forward_ad._current_level >= 0


def _wraps_grad(t: Maybe) -> bool:
    """Whether a tensor within ``vmap`` has one outside that requires grad, as itself it does not
    say. The wrappers have no rule for vmap and say so; the bare ops would drop the gradient."""
    while t is not None and _functorch.is_functorch_wrapped_tensor(t):
        if t.requires_grad:
            return True
        t = _functorch.get_unwrapped(t)
    return t is not None and t.requires_grad


def is_plain(t: torch.Tensor) -> bool:
    """Whether a tensor has a value to read: it isn't fake, traced by make_fx, or batched."""
    return (
        type(t) is torch.Tensor
        and not _functorch.is_functorch_wrapped_tensor(t)
        and not _functorch.is_legacy_batchedtensor(t)  # of autograd.grad's is_grads_batched
        and torch._C._get_dispatch_mode(_PROXY) is None
    )


def distinct(*tensors: Maybe) -> tuple[Maybe, ...]:
    """The tensors, one that comes again as a view of itself, where a graph is traced.

    torch 2.11's Dynamo drops the gradients of all but one of an autograd.Function's arguments that
    are the same tensor; 2.13's does not.
    """
    if not torch.compiler.is_compiling():
        return tensors
    found: list[Maybe] = []
    for t in tensors:
        again = False
        for other in found:
            again = again or (t is not None and t is other)
        found.append(t.view_as(t) if again else t)
    return tuple(found)


class _Once(torch.autograd.Function):
    """The first ``count`` tensors as they are, with an error for whoever differentiates them.

    The rest are what they depend on: without these, autograd would not come this way.
    """

    @staticmethod
    def forward(ctx, count: int, *tensors: Maybe) -> tuple[Maybe, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx, *grads: Maybe) -> None:
        raise RuntimeError(
            "vae_fast's native ops can be differentiated once only; for second derivatives use "
            "vae_fast.set_backend('reference')"
        )


def once_differentiable(backward: Callable) -> Callable:
    """Make whoever differentiates ``backward`` get an error.

    torch's decorator of this name lets a gradient through as a constant where the upstream
    gradient is one, as it is in a gradient penalty, whose second derivative then is wrong.
    """

    @functools.wraps(backward)
    def wrapper(ctx, *grads: Maybe):
        if not torch.is_grad_enabled():  # no create_graph: nobody can differentiate this
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        results = results if isinstance(results, tuple) else (results,)
        return _Once.apply(len(results), *results, *grads, *ctx.saved_tensors)

    return wrapper
