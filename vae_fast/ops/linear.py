"""The last linear layer and the Bernoulli loss in one op, without the (B, D) logits in memory.

For each chunk of samples, logits = hidden W^T + b go into a buffer that stays in the cache. The
loss and its gradient are computed in place in the buffer, then the products for the gradients of
hidden, weight and bias. One pass over (chunk, D) replaces autograd's three passes over (B, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backend import is_watched
from vae_fast.ops.autograd import beyond_native, differentiable_again, needs_grad
from vae_fast.ops.likelihood import in_accepted_dtype, mean_scale, ops_of, rescaled
from vae_fast.ops.matmul import accumulate, by_onednn, linear, product_into
from vae_fast.reference import compute_dtype
from vae_fast.types import REDUCTIONS

_ops = ops_of("bernoulli")

Maybe = torch.Tensor | None
NONE, SUM, BATCHMEAN = 0, 1, 2

# A chunk's logits, in bytes. A GPU's L2 holds tens of megabytes, and larger chunks use the GPU
# better. On the CPU a chunk stays near the second-level cache; half precision doubles it, because
# its products are fast only with enough samples (docs/output_layer.md).
CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 24}


def chunk_rows(samples: int, logits_per_sample: int, element_size: int, device_type: str) -> int:
    """Samples per chunk; the last may have fewer. Only sizes determine it, for reproducibility."""
    budget = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"])
    if device_type == "cpu" and element_size == 2:
        budget *= 2
    most = max(1, budget // max(1, logits_per_sample * element_size))
    chunks = max(1, -(-samples // most))
    return max(1, -(-samples // chunks))


def _chunks(hidden: Tensor, target: Tensor) -> list[slice]:
    samples = hidden.shape[0]
    rows = chunk_rows(samples, target.shape[1], hidden.element_size(), hidden.device.type)
    return [slice(i, min(i + rows, samples)) for i in range(0, samples, rows)]


class _Logits:
    """Computes the logits of a chunk of hidden, in a buffer that all chunks share. oneDNN's product
    returns a new tensor instead."""

    def __init__(self, weight: Tensor, bias: Maybe) -> None:
        self.weight, self.bias = weight, bias
        self.buffer: Maybe = None

    def __call__(self, x: Tensor) -> Tensor:
        if by_onednn(x, self.weight):
            return linear(x, self.weight, self.bias)
        if self.buffer is None:  # the first chunk is the largest
            self.buffer = x.new_empty(x.shape[0], self.weight.shape[0])
        logits = self.buffer[: x.shape[0]]
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=logits)
        return torch.addmm(self.bias, x, self.weight.t(), out=logits)


class _ParameterGrads:
    """Gradients of weight and bias, summed over chunks.

    Half precision is summed in float32 and rounded once at the end. Sums of one or two chunks are
    equally accurate in the dtype itself, and need no extra memory.
    """

    def __init__(self, weight: Tensor, bias: Maybe, chunks: int) -> None:
        self.weight, self.bias = weight, bias
        dtype = weight.dtype if chunks <= 2 else compute_dtype(weight)
        self.of_weight = torch.zeros_like(weight, dtype=dtype)
        self.of_bias = None if bias is None else torch.zeros_like(bias, dtype=compute_dtype(bias))

    def add(self, grad: Tensor, x: Tensor) -> None:
        accumulate(self.of_weight, grad, x)
        if self.of_bias is not None:
            self.of_bias += grad.sum(0)  # torch sums half precision in float32, and rounds once

    def result(self) -> list[Maybe]:
        of_bias = None
        if self.bias is not None and self.of_bias is not None:
            of_bias = self.of_bias.to(self.bias.dtype)
        return [self.of_weight.to(self.weight.dtype), of_bias]


def _value(hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int) -> Tensor:
    """The loss alone, chunk by chunk."""
    chunks = _chunks(hidden, target)
    dtype = compute_dtype(hidden)
    if reduction == NONE:
        out = hidden.new_empty(hidden.shape[0], dtype=dtype)
    logits_of = _Logits(weight, bias)
    sums = []
    for rows in chunks:
        logits = logits_of(hidden[rows])
        if reduction == NONE:
            out[rows] = _ops.nll([logits], target[rows], NONE)
        else:
            sums.append(_ops.nll([logits], target[rows], SUM))
        del logits  # frees them before the next chunk
    return out if reduction == NONE else _total(sums, hidden, reduction)


def _total(sums: list[Tensor], hidden: Tensor, reduction: int) -> Tensor:
    total = torch.stack(sums).sum() if sums else hidden.new_zeros((), dtype=compute_dtype(hidden))
    return total / hidden.shape[0] if reduction == BATCHMEAN else total


def _value_and_grads(
    hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> tuple[Tensor, list[Maybe]]:
    """The loss and its gradients, for an upstream gradient of 1, in one pass over the samples."""
    chunks = _chunks(hidden, target)
    scale = mean_scale(hidden, reduction)
    grad_hidden = torch.empty_like(hidden)
    parameters = _ParameterGrads(weight, bias, len(chunks))
    logits_of = _Logits(weight, bias)
    sums = []
    for rows in chunks:
        logits = logits_of(hidden[rows])
        sums.append(_ops.nll_with_grad_out([logits], target[rows], SUM, scale, [logits]))
        product_into(grad_hidden[rows], logits, weight)
        parameters.add(logits, hidden[rows])
        del logits
    return _total(sums, hidden, reduction), [grad_hidden, *parameters.result()]


class _LinearBernoulliNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
    ) -> Any:
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.reduction = reduction
        ctx.grads = None
        if reduction == NONE:  # forward does not know the samples' upstream gradients
            return _value(hidden, weight, bias, target, reduction)
        nll, ctx.grads = _value_and_grads(hidden, weight, bias, target, reduction)
        return nll

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        if beyond_native(grad_nll):

            def nll(hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor) -> Tensor:
                kind = REDUCTIONS[ctx.reduction]
                return reference.linear_bernoulli_nll(hidden, weight, bias, target, kind)

            return differentiable_again(nll, ctx.saved_tensors, (grad_nll,), ctx.needs_input_grad)
        # The gradients made in forward are given away, once: whoever gets them may write to them.
        grads, ctx.grads = ctx.grads, None
        if ctx.reduction == NONE or grads is None or not rescaled(_present(grads), grad_nll):
            grads = _grads(grad_nll, hidden, weight, bias, target, ctx.reduction)
        return *grads, None, None


def _present(grads: list[Maybe]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _grads(
    grad_nll: Tensor, hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> list[Maybe]:
    """Gradients from the saved inputs, for upstream gradients that forward did not know."""
    scale = mean_scale(hidden, reduction)
    upstream = (grad_nll * scale).expand(hidden.shape[0]).contiguous()
    chunks = _chunks(hidden, target)
    grad_hidden = torch.empty_like(hidden)
    parameters = _ParameterGrads(weight, bias, len(chunks))
    logits_of = _Logits(weight, bias)
    for rows in chunks:
        (grad,) = _ops.nll_backward(
            upstream[rows], [logits_of(hidden[rows])], target[rows], NONE, 1
        )
        product_into(grad_hidden[rows], grad, weight)
        parameters.add(grad, hidden[rows])
    return [grad_hidden, *parameters.result()]


def linear_bernoulli_nll(
    hidden: Tensor, weight: Tensor, bias: Maybe, target: Tensor, reduction: int
) -> Tensor:
    if is_watched():
        return reference.linear_bernoulli_nll(hidden, weight, bias, target, REDUCTIONS[reduction])
    hidden, weight = hidden.contiguous(), weight.contiguous()
    target = target.contiguous()
    if target.is_cuda:
        target = in_accepted_dtype(target, hidden.dtype)
    if needs_grad(hidden, weight, bias):
        return _LinearBernoulliNLL.apply(hidden, weight, bias, target, reduction)
    return _value(hidden, weight, bias, target, reduction)
