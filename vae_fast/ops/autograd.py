"""The shared parts of the autograd wrappers.

A native ``backward`` computes first derivatives for one upstream gradient. Higher derivatives and
batched upstream gradients are computed by plain PyTorch:

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved_tensors
        if beyond_native(grad):
            return differentiable_again(reference.f, (x, target), (grad,), ctx.needs_input_grad)
        ...  # the native gradient

Under function transforms (``torch.func``) and forward-mode differentiation, ``use_native`` in
``vae_fast.backend`` leaves the whole call to plain PyTorch.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

Maybe = torch.Tensor | None
_functorch = torch._C._functorch
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def needs_grad(*tensors: Maybe) -> bool:
    """Whether a call must go through autograd."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def is_batched(t: Maybe) -> bool:
    """Whether ``t`` is a batch of tensors in ``vmap`` or under ``is_grads_batched``."""
    return t is not None and (
        _functorch.is_functorch_wrapped_tensor(t) or _functorch.is_legacy_batchedtensor(t)
    )


def is_plain(t: torch.Tensor) -> bool:
    """Whether a tensor's value can be read: it is not fake, traced by make_fx, or batched."""
    return (
        type(t) is torch.Tensor
        and not is_batched(t)
        and torch._C._get_dispatch_mode(_PROXY) is None
    )


def distinct(*tensors: Any) -> tuple[Any, ...]:
    """The tensors; while a graph is traced, repeated ones are replaced by views.

    If several arguments of an autograd.Function are the same tensor, torch 2.11's Dynamo drops all
    but one of their gradients; 2.13's does not.
    """
    if not torch.compiler.is_compiling():
        return tensors
    found: list[Any] = []
    for t in tensors:
        again = False
        for other in found:
            again = again or (t is not None and t is other)
        found.append(t.view_as(t) if again else t)
    return tuple(found)


_warned = False


def beyond_native(*grads: Maybe) -> bool:
    """Whether a ``backward`` called with ``grads`` must return ``differentiable_again``.

    This is so if the gradient will be differentiated (``create_graph=True``), or if upstream
    gradients are batched (``is_grads_batched=True``, ``jacobian(vectorize=True)``, ``vmap`` of
    ``torch.autograd.grad``). torch.compile supports neither.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or any(map(is_batched, grads))


def differentiable_again(
    reference: Callable[..., torch.Tensor | Sequence[torch.Tensor]],
    inputs: Sequence[Maybe],
    grads: Sequence[Maybe],
    needs: Sequence[bool],
    autocast: torch.dtype | None = None,
) -> tuple[Maybe, ...]:
    """The gradients of ``reference(*inputs)`` by plain PyTorch, for a ``backward`` to return.

    ``reference`` is computed again from the saved inputs, and torch differentiates it. In grad mode
    the gradients are differentiable to any order. A warning, once per process, says that this is
    slower than the native op.

    Args:
        reference: the op in plain PyTorch, with the op's outputs in the op's order.
        inputs: the first arguments of the op's ``forward``, as saved; None for absent ones.
        grads: the upstream gradient of each output, or None.
        needs: ``ctx.needs_input_grad``.
        autocast: the autocast dtype of ``forward``; None for none.

    Returns:
        A gradient or None for each entry of ``needs``.
    """
    again = torch.is_grad_enabled()
    if again:
        _warn_once()
    with torch.enable_grad(), _autocast(next(t for t in inputs if t is not None), autocast):
        # Views: a repeated tensor has a gradient of its own for each argument.
        views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
        outputs = reference(*views)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [i for i, t in enumerate(inputs) if t is not None and needs[i]]
    pairs = [(o, g) for o, g in pairs if o.requires_grad]
    found: list[Maybe] = [None] * len(needs)
    if pairs and wanted:
        results = torch.autograd.grad(
            [o for o, _ in pairs],
            [views[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=again,
            allow_unused=True,
        )
        for i, grad in zip(wanted, results, strict=True):
            found[i] = grad
    return tuple(found)


def _autocast(t: torch.Tensor, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """The autocast state of ``forward``: ``dtype``, or None for none."""
    device = t.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "gradients of vae_fast's ops that are to be differentiated (create_graph=True) are "
            "computed by plain PyTorch, which is slower; vae_fast.set_backend('reference') computes "
            "the forward pass so too, and silences this",
            RuntimeWarning,
            stacklevel=3,
        )
