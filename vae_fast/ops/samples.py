"""The Bernoulli loss of K sample sets against one target, which is never repeated."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.ops.autograd import beyond_native, differentiable_again, needs_grad
from vae_fast.ops.bernoulli import with_kernel
from vae_fast.reference import compute_dtype

_ops = torch.ops.vae_fast
_nll = _ops.bernoulli_nll_samples.default
_nll_backward = _ops.bernoulli_nll_samples_backward.default

Tensor = torch.Tensor


class _BernoulliNLLSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return _nll(logits, target)

    @staticmethod
    def backward(ctx, grad_nll: Tensor):
        if beyond_native(grad_nll):
            return differentiable_again(
                reference.bernoulli_nll_samples,
                ctx.saved_tensors,
                (grad_nll,),
                ctx.needs_input_grad,
            )
        return _nll_backward(grad_nll.contiguous(), *ctx.saved_tensors), None


def bernoulli_nll_samples(logits: Tensor, target: Tensor) -> Tensor:
    """-log p(target | logits_k) for logits (K, B, ...) and target (B, ...): (K, B), in nats."""
    logits, target = logits.contiguous(), with_kernel(logits, target).contiguous()
    if needs_grad(logits):
        return _BernoulliNLLSamples.apply(logits, target)
    return _nll(logits, target)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@torch.library.register_fake("vae_fast::bernoulli_nll_samples")
def _(logits, target):
    return logits.new_empty(logits.shape[:2], dtype=compute_dtype(logits))


@torch.library.register_fake("vae_fast::bernoulli_nll_samples_backward")
def _(grad_nll, logits, target):
    return torch.empty_like(logits)
