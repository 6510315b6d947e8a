"""What the autograd wrappers share: when they are needed, and what they can't do natively.

A native ``backward`` gives first derivatives of one upstream gradient. For all else (a gradient
that is to be differentiated again, many upstream gradients at once) it hands over to plain PyTorch:

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved_tensors
        if beyond_native(grad):
            return differentiable_again(reference.f, (x, target), (grad,), ctx.needs_input_grad)
        ...  # the native gradient

Function transforms (``torch.func``) and forward-mode derivatives don't come here: ``use_native`` in
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
    """Whether ``t`` stands for many tensors at once: within ``vmap``, or of ``is_grads_batched``."""
    return t is not None and (
        _functorch.is_functorch_wrapped_tensor(t) or _functorch.is_legacy_batchedtensor(t)
    )


def is_plain(t: torch.Tensor) -> bool:
    """Whether a tensor has a value to read: it isn't fake, traced by make_fx, or batched."""
    return (
        type(t) is torch.Tensor
        and not is_batched(t)
        and torch._C._get_dispatch_mode(_PROXY) is None
    )


def distinct(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, one that comes again as a view of itself, where a graph is traced.

    torch 2.11's Dynamo drops the gradients of all but one of an autograd.Function's arguments that
    are the same tensor; 2.13's does not.
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
    """Whether a ``backward`` called with ``grads`` is to return ``differentiable_again``.

    It is where the gradient is to be differentiated (``create_graph=True``) and where upstream
    gradients are batched (``is_grads_batched=True``, ``jacobian(vectorize=True)``, ``vmap`` of a
    call of ``torch.autograd.grad``). A compiled backward is neither: torch.compile refuses both.
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
    """The gradients of ``reference(*inputs)`` by plain PyTorch: what a ``backward`` returns.

    ``reference`` is computed again from the saved inputs, and torch differentiates it. If grad mode
    is on, the gradients are part of the graph, to any order; a warning says so once a process,
    since this is slower than the native op.

    Args:
        reference: the op in plain PyTorch, with the op's outputs in the op's order.
        inputs: the first arguments of the op's ``forward``, as saved; None where there is none.
        grads: the upstream gradient of each output; None where there is none.
        needs: ``ctx.needs_input_grad``.
        autocast: the dtype of the autocast that ``forward`` ran under; None for none.

    Returns:
        As many gradients as ``needs`` has entries, None where no gradient is needed or none arrives.
    """
    again = torch.is_grad_enabled()
    if again:
        _warn_once()
    with torch.enable_grad(), _autocast(next(t for t in inputs if t is not None), autocast):
        # Views: a tensor that comes twice is asked for twice, and each time for its own part.
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
    """What ``forward`` ran under: autocast to ``dtype``, or none."""
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
