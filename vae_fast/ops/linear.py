"""The last linear layer and the Bernoulli loss in one op: the logits never exist in memory.

Chunk by chunk of samples: logits = hidden W^T + b into a buffer that stays in the cache, loss and
gradient in place in that buffer, then the products that make the gradients of hidden, weight and
bias. What autograd would do in three passes over (B, D) happens in one over (chunk, D).
"""

from __future__ import annotations

import torch

from vae_fast.ops.autograd import needs_grad, once_differentiable
from vae_fast.ops.bernoulli import rescaled, with_kernel
from vae_fast.ops.matmul import accumulate, linear_into, product_into
from vae_fast.reference import compute_dtype

_ops = torch.ops.vae_fast
_with_grad_out = _ops.bernoulli_nll_with_grad_out.default
_bernoulli_nll = _ops.bernoulli_nll.default

Tensor = torch.Tensor
Maybe = torch.Tensor | None
NONE, SUM, BATCHMEAN = 0, 1, 2

# Logits in flight. On the CPU they share the second-level cache with a slice of hidden; a GPU's
# L2 holds tens of megabytes, and more samples fill it better.
CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 24}


def chunk_rows(logits_per_sample: int, element_size: int, device_type: str) -> int:
    """Samples whose logits make one chunk: it depends on the sizes alone, and so do the results."""
    budget = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"])
    return max(1, budget // max(1, logits_per_sample * element_size))


def _chunks(hidden: Tensor, target: Tensor) -> list[slice]:
    rows = chunk_rows(target.shape[1], hidden.element_size(), hidden.device.type)
    return [slice(i, min(i + rows, hidden.shape[0])) for i in range(0, hidden.shape[0], rows)]


def _value(hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int) -> Tensor:
    """The loss alone, chunk by chunk."""
    chunks = _chunks(hidden, target)
    dtype = compute_dtype(hidden)
    if reduction == NONE:
        out = hidden.new_empty(hidden.shape[0], dtype=dtype)
    buffer = hidden.new_empty(chunks[0].stop if chunks else 0, weight.shape[0])
    sums = []
    for rows in chunks:
        logits = buffer[: rows.stop - rows.start]
        linear_into(logits, hidden[rows], weight, bias)
        if reduction == NONE:
            out[rows] = _bernoulli_nll(logits, target[rows], NONE, True)
        else:
            sums.append(_bernoulli_nll(logits, target[rows], SUM, True))
    return out if reduction == NONE else _total(sums, hidden, reduction)


def _total(sums: list[Tensor], hidden: Tensor, reduction: int) -> Tensor:
    total = torch.stack(sums).sum() if sums else hidden.new_zeros((), dtype=compute_dtype(hidden))
    return total / hidden.shape[0] if reduction == BATCHMEAN else total


def _value_and_grads(
    hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> tuple[Tensor, list[Maybe]]:
    """The loss and its gradients, for an upstream gradient of 1, in one pass over the samples."""
    chunks = _chunks(hidden, target)
    scale = 1.0 / hidden.shape[0] if reduction == BATCHMEAN and hidden.shape[0] else 1.0
    grad_hidden = torch.empty_like(hidden)
    # Sums over chunks are float32 or better; rounded to the parameters' dtype once, at the end.
    dtype = compute_dtype(hidden)
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)
    buffer = hidden.new_empty(chunks[0].stop if chunks else 0, weight.shape[0])
    sums = []
    for rows in chunks:
        logits = buffer[: rows.stop - rows.start]
        linear_into(logits, hidden[rows], weight, bias)
        sums.append(_with_grad_out(logits, target[rows], SUM, True, scale, logits))
        product_into(grad_hidden[rows], logits, weight)
        accumulate(grad_weight, logits, hidden[rows])
        if grad_bias is not None:
            grad_bias += logits.sum(0, dtype=dtype)
    grads = [grad_hidden, grad_weight.to(weight.dtype), grad_bias]
    if grad_bias is not None:
        grads[2] = grad_bias.to(bias.dtype)
    return _total(sums, hidden, reduction), grads


class _LinearBernoulliNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int):
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.reduction = reduction
        ctx.grads = None
        if reduction == NONE:  # the samples' upstream gradients are not known yet
            return _value(hidden, weight, bias, target, reduction)
        nll, ctx.grads = _value_and_grads(hidden, weight, bias, target, reduction)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_nll: Tensor):
        hidden, weight, bias, target = ctx.saved_tensors
        # The gradients made in forward are given away, once: whoever gets them may write to them.
        grads, ctx.grads = ctx.grads, None
        if ctx.reduction == NONE or grads is None or not rescaled(_given(grads), grad_nll):
            grads = _grads(grad_nll, hidden, weight, bias, target, ctx.reduction)
        return *grads, None, None


def _given(grads: list[Maybe]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _grads(
    grad_nll: Tensor, hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> list[Maybe]:
    """Gradients for upstream gradients that forward did not know, from the inputs again."""
    backward = _ops.bernoulli_nll_backward.default
    scale = 1.0 / hidden.shape[0] if reduction == BATCHMEAN else 1.0
    upstream = (grad_nll * scale).expand(hidden.shape[0]).contiguous()
    dtype = compute_dtype(hidden)
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)
    for rows in _chunks(hidden, target):
        logits = hidden.new_empty(rows.stop - rows.start, weight.shape[0])
        linear_into(logits, hidden[rows], weight, bias)
        grad = backward(upstream[rows], logits, target[rows], NONE, True)
        product_into(grad_hidden[rows], grad, weight)
        accumulate(grad_weight, grad, hidden[rows])
        if grad_bias is not None:
            grad_bias += grad.sum(0, dtype=dtype)
    if grad_bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return [grad_hidden, grad_weight.to(weight.dtype), grad_bias]


def linear_bernoulli_nll(
    hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> Tensor:
    hidden, weight = hidden.contiguous(), weight.contiguous()
    target = with_kernel(hidden, target).contiguous()
    if needs_grad(hidden, weight, bias):
        return _LinearBernoulliNLL.apply(hidden, weight, bias, target, reduction)
    return _value(hidden, weight, bias, target, reduction)
