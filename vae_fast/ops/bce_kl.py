"""BCE + beta * KL, natively: the loss of a Bernoulli VAE in one op, forward and backward.

Where the gradients are made is decided as in ``vae_fast.ops.bernoulli``.
"""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.ops.autograd import beyond_native, differentiable_again, distinct, needs_grad
from vae_fast.ops.bernoulli import grad_of_target, made_in_forward, mean_scale, pair, rescaled
from vae_fast.ops.gaussian import _pair as gaussian_pair
from vae_fast.ops.gaussian import empty_sum
from vae_fast.types import REDUCTIONS, LossOutput

_ops = torch.ops.vae_fast
_bce_kl = _ops.bce_kl.default
_bce_kl_backward = _ops.bce_kl_backward.default
_bce_kl_with_grad = _ops.bce_kl_with_grad.default

Tensor = torch.Tensor
Maybe = torch.Tensor | None


def _dense(grad: Maybe) -> Maybe:
    return None if grad is None else grad.contiguous()


def _backward(ctx, grad_loss: Maybe, grad_recon: Maybe, grad_kl: Maybe):
    return _bce_kl_backward(
        _dense(grad_loss), _dense(grad_recon), _dense(grad_kl), *ctx.saved_tensors[:4],
        ctx.beta, ctx.saved_tensors[4], *ctx.options,
    )  # fmt: skip


def _again(ctx, *grads: Maybe):
    """The gradients by plain PyTorch."""
    *inputs, beta_tensor = ctx.saved_tensors
    beta = ctx.beta if beta_tensor is None else beta_tensor
    reduction, from_logits = ctx.options

    def loss(*inputs: Tensor) -> LossOutput:
        return reference.bce_kl_loss(*inputs, beta, REDUCTIONS[reduction], from_logits)

    return differentiable_again(loss, inputs, grads, ctx.needs_input_grad)


class _BceKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits):
        ctx.save_for_backward(logits, target, mu, logvar, beta_tensor)
        ctx.beta, ctx.options = beta, (reduction, from_logits)
        ctx.set_materialize_grads(False)
        ctx.grads = None
        arguments = logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits
        if made_in_forward(logits, reduction):
            loss, recon, kl, *ctx.grads = _bce_kl_with_grad(*arguments, 1.0)
            return loss, recon, kl
        return _bce_kl(*arguments)

    @staticmethod
    def backward(ctx, grad_loss: Maybe, grad_recon: Maybe, grad_kl: Maybe):
        if grad_loss is None and grad_recon is None and grad_kl is None:
            return (None,) * 8
        if beyond_native(grad_loss, grad_recon, grad_kl):
            return _again(ctx, grad_loss, grad_recon, grad_kl)
        # The gradients made in forward are given away, once: whoever gets them may write to them.
        grads, ctx.grads = ctx.grads, None
        only_loss = grad_recon is None and grad_kl is None
        if grads is None or not only_loss or not rescaled(grads, grad_loss):
            grads = _backward(ctx, grad_loss, grad_recon, grad_kl)
        grad_logits, grad_mu, grad_logvar = grads
        # What was not asked about has no gradient, as in plain PyTorch: zeros would move weights
        # that an optimizer keeps momentum for.
        if grad_loss is None and grad_recon is None:
            grad_logits = None
        if grad_loss is None and grad_kl is None:
            grad_mu = grad_logvar = None
        grad_target = None
        if ctx.needs_input_grad[1]:
            grad_target = _target_grad(ctx, grad_loss, grad_recon)
        return grad_logits, grad_target, grad_mu, grad_logvar, None, None, None, None


def _target_grad(ctx, grad_loss: Maybe, grad_recon: Maybe) -> Maybe:
    parts = [g for g in (grad_loss, grad_recon) if g is not None]
    if not parts:
        return None
    logits, target = ctx.saved_tensors[:2]
    reduction, from_logits = ctx.options
    return grad_of_target(sum(parts) * mean_scale(logits, reduction), logits, target, from_logits)


class _BceKLTraced(torch.autograd.Function):
    """The same without state between forward and backward, which torch.compile can follow."""

    @staticmethod
    def forward(ctx, logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits):
        ctx.save_for_backward(logits, target, mu, logvar, beta_tensor)
        ctx.beta, ctx.options = beta, (reduction, from_logits)
        return _bce_kl(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits)

    @staticmethod
    def backward(ctx, grad_loss: Tensor, grad_recon: Tensor, grad_kl: Tensor):
        grads = _backward(ctx, grad_loss, grad_recon, grad_kl)
        return grads[0], None, grads[1], grads[2], None, None, None, None


def bce_kl_loss(
    logits: Tensor,
    target: Tensor,
    mu: Tensor,
    logvar: Tensor,
    beta: float | Tensor,
    reduction: int,
    from_logits: bool,
) -> LossOutput:
    if (logits.dtype == torch.float64) != (mu.dtype == torch.float64):
        logits, mu, logvar = (t.to(torch.float64) for t in (logits, mu, logvar))
    logits, target = pair(logits, target)
    mu, logvar = gaussian_pair(mu, logvar)
    beta_tensor = None
    if isinstance(beta, torch.Tensor):
        if logits.dtype == torch.float64:
            # The kernels take beta as float32, which is not all of a float64.
            recon, kl = bce_kl_loss(logits, target, mu, logvar, 1.0, reduction, from_logits)[1:]
            return LossOutput(recon + beta.to(logits.device, torch.float64) * kl, recon, kl)
        beta_tensor, beta = beta.to(logits.device, torch.float32), 1.0
    tensors = logits, target, mu, logvar
    options = float(beta), beta_tensor, reduction, from_logits
    if not needs_grad(*tensors):
        return LossOutput(*_bce_kl(*tensors, *options))
    arguments = *distinct(*tensors), *options
    if torch.compiler.is_compiling() and not target.requires_grad:
        return LossOutput(*_BceKLTraced.apply(*arguments))
    return LossOutput(*_BceKL.apply(*arguments))


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@torch.library.register_fake("vae_fast::bce_kl")
def _(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits):
    return tuple(empty_sum(logits, reduction) for _ in range(3))


@torch.library.register_fake("vae_fast::bce_kl_backward")
def _(
    grad_loss, grad_recon, grad_kl,
    logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits,
):  # fmt: skip
    return torch.empty_like(logits), torch.empty_like(mu), torch.empty_like(mu)


@torch.library.register_fake("vae_fast::bce_kl_with_grad")
def _(logits, target, mu, logvar, beta, beta_tensor, reduction, from_logits, grad_scale):
    losses = tuple(empty_sum(logits, reduction) for _ in range(3))
    return *losses, torch.empty_like(logits), torch.empty_like(mu), torch.empty_like(mu)
