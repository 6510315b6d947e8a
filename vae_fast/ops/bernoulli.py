"""The Bernoulli loss, natively.

On the CPU the gradient is made in the forward pass, where logits and target are in the cache
anyway, and handed out by backward; on the GPU, and while torch.compile traces, backward computes
it from the saved inputs (reading 5 bytes and writing 4 again costs less there than rescaling).
"""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.ops.autograd import (
    beyond_native,
    differentiable_again,
    distinct,
    is_plain,
    needs_grad,
)
from vae_fast.ops.gaussian import empty_sum
from vae_fast.ops.layout import dense, like
from vae_fast.types import REDUCTIONS

_ops = torch.ops.vae_fast
_bernoulli_nll = _ops.bernoulli_nll.default
_bernoulli_nll_backward = _ops.bernoulli_nll_backward.default
_bernoulli_nll_with_grad = _ops.bernoulli_nll_with_grad.default

Tensor = torch.Tensor
Maybe = torch.Tensor | None
NONE, BATCHMEAN = 0, 2  # reductions


def with_kernel(logits: Tensor, target: Tensor) -> Tensor:
    """``target`` in a dtype that has a kernel for logits of theirs.

    float32 targets of half-precision logits have one; what else differs is converted to the dtype
    that keeps the target's digits.
    """
    if not target.is_floating_point() or target.dtype == logits.dtype:
        return target
    if logits.dtype in (torch.float32, torch.float64):
        return target.to(logits.dtype)
    return target.to(torch.float32)


def pair(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and target in one dense layout and in a pair of dtypes that has a kernel."""
    logits = dense(logits)
    return logits, like(with_kernel(logits, target), logits)


def grad_of_target(grad: Tensor, logits: Tensor, target: Tensor, from_logits: bool) -> Tensor:
    """d nll / d target of each element times its upstream gradient. Rarely asked for, and so
    left to plain PyTorch: it is log((1 - p) / p), which from logits is just -logits."""
    if grad.dim() == 1:
        grad = grad.reshape(-1, *[1] * (logits.dim() - 1))
    if from_logits:
        slope = -logits
    else:
        p = logits.to(torch.promote_types(logits.dtype, torch.float32))
        slope = torch.log1p(-p).clamp_min(-100.0) - torch.log(p).clamp_min(-100.0)
    return (grad * slope).to(target.dtype)


def mean_scale(x: Tensor, reduction: int) -> float:
    """What a sum's gradient is multiplied by: 1 / samples for batchmean, and 1 where there are none."""
    return 1.0 / max(1, x.shape[0]) if reduction == BATCHMEAN and x.dim() >= 2 else 1.0


def made_in_forward(logits: Tensor, reduction: int) -> bool:
    """Whether the gradient is best made together with the value; see the module's docstring."""
    return logits.is_cpu and reduction != NONE and not torch.compiler.is_compiling()


def rescaled(grads: list[Tensor], grad_loss: Tensor) -> bool:
    """Multiply gradients made for an upstream gradient of 1 by the real one, in place.

    False if they must be made again: in half precision they are rounded already, to zero where a
    loss scale was to save them from that.
    """
    if not is_plain(grad_loss):
        return False
    on_host = grad_loss.is_cpu  # reading a GPU's number would make the host wait for it
    if on_host and grad_loss.item() == 1.0:
        return True
    if any(grad.element_size() < 4 for grad in grads):
        return False
    factor = grad_loss.item() if on_host else grad_loss
    for grad in grads:
        grad.mul_(factor)
    return True


class _BernoulliNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, reduction: int, from_logits: bool) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.options = reduction, from_logits
        ctx.grad_logits = None
        if made_in_forward(logits, reduction) and ctx.needs_input_grad[0]:
            nll, ctx.grad_logits = _bernoulli_nll_with_grad(
                logits, target, reduction, from_logits, 1.0
            )
            return nll
        return _bernoulli_nll(logits, target, reduction, from_logits)

    @staticmethod
    def backward(ctx, grad_nll: Tensor):
        logits, target = ctx.saved_tensors
        reduction, from_logits = ctx.options
        if beyond_native(grad_nll):

            def nll(logits: Tensor, target: Tensor) -> Tensor:
                return reference.bernoulli_nll(logits, target, REDUCTIONS[reduction], from_logits)

            return differentiable_again(nll, (logits, target), (grad_nll,), ctx.needs_input_grad)
        grad_logits = grad_target = None
        if ctx.needs_input_grad[0]:
            # The gradient made in forward is given away, once: whoever gets it may write to it.
            grad_logits, ctx.grad_logits = ctx.grad_logits, None
            if grad_logits is None or not rescaled([grad_logits], grad_nll):
                grad_logits = _bernoulli_nll_backward(
                    grad_nll.contiguous(), logits, target, reduction, from_logits
                )
        if ctx.needs_input_grad[1]:
            scale = mean_scale(logits, reduction)
            grad_target = grad_of_target(grad_nll * scale, logits, target, from_logits)
        return grad_logits, grad_target, None, None


class _BernoulliNLLTraced(torch.autograd.Function):
    """The same without state between forward and backward, which torch.compile can follow."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, reduction: int, from_logits: bool) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.options = reduction, from_logits
        return _bernoulli_nll(logits, target, reduction, from_logits)

    @staticmethod
    def backward(ctx, grad_nll: Tensor):
        logits, target = ctx.saved_tensors
        grad = _bernoulli_nll_backward(grad_nll.contiguous(), logits, target, *ctx.options)
        return grad, None, None, None


def bernoulli_nll(logits: Tensor, target: Tensor, reduction: int, from_logits: bool) -> Tensor:
    logits, target = pair(logits, target)
    if not needs_grad(logits, target):
        return _bernoulli_nll(logits, target, reduction, from_logits)
    logits, target = distinct(logits, target)
    if torch.compiler.is_compiling() and not target.requires_grad:
        return _BernoulliNLLTraced.apply(logits, target, reduction, from_logits)
    return _BernoulliNLL.apply(logits, target, reduction, from_logits)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@torch.library.register_fake("vae_fast::bernoulli_nll")
def _(logits, target, reduction, from_logits):
    return empty_sum(logits, reduction)


@torch.library.register_fake("vae_fast::bernoulli_nll_backward")
def _(grad_nll, logits, target, reduction, from_logits):
    return torch.empty_like(logits)


@torch.library.register_fake("vae_fast::bernoulli_nll_with_grad")
def _(logits, target, reduction, from_logits, grad_scale):
    return empty_sum(logits, reduction), torch.empty_like(logits)


@torch.library.register_fake("vae_fast::bernoulli_nll_with_grad_out")
def _(logits, target, reduction, from_logits, grad_scale, grad_logits):
    return empty_sum(logits, reduction)
