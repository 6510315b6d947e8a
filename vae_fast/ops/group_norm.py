"""The native GroupNorm, with SiLU in the same pass or without it. It saves the input and each group's statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.ops.autograd import beyond_native, differentiable_again, distinct, needs_grad
from vae_fast.ops.fake import register_fake
from vae_fast.ops.layout import memory_format
from vae_fast.reference import compute_dtype

_group_norm = torch.ops.vae_fast.group_norm.default
_group_norm_backward = torch.ops.vae_fast.group_norm_backward.default

Maybe = torch.Tensor | None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Maybe, bias: Maybe, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, mean, rstd = _group_norm(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if beyond_native(grad):

            def again(x: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
                return _by_small_ops(x, ctx.groups, weight, bias, ctx.eps, ctx.silu)

            return differentiable_again(again, (x, weight, bias), (grad,), ctx.needs_input_grad)
        grad = grad.contiguous(memory_format=memory_format(x))
        grads = _group_norm_backward(grad, x, weight, bias, mean, rstd, ctx.silu)
        wanted = (True, weight is not None, bias is not None)
        return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None, None


def _by_small_ops(
    x: Tensor, groups: int, weight: Maybe, bias: Maybe, eps: float, silu: bool
) -> Tensor:
    """``group_norm`` by elementary ops, for second derivatives: those of torch 2.13's own
    group_norm do not support batched gradients."""
    if x.numel() == 0:
        return reference.group_norm(x, groups, weight, bias, eps, silu)
    wide = x.to(compute_dtype(x))
    rows = wide.reshape(x.shape[0], groups, -1)
    rows = rows - rows.mean(2, keepdim=True)
    y = (rows * torch.rsqrt(rows.square().mean(2, keepdim=True) + eps)).reshape(x.shape)
    shape = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return (torch.nn.functional.silu(y) if silu else y).to(x.dtype)


def group_norm(
    x: Tensor, groups: int, weight: Maybe, bias: Maybe, eps: float, silu: bool
) -> Tensor:
    x = x.contiguous(memory_format=memory_format(x))
    dtype = compute_dtype(x)
    weight, bias = (None if t is None else t.to(dtype).contiguous() for t in (weight, bias))
    if needs_grad(x, weight, bias):
        return _GroupNorm.apply(*distinct(x, weight, bias), groups, eps, silu)
    return _group_norm(x, weight, bias, groups, eps, silu)[0]


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@register_fake("group_norm")
def _(x: Tensor, weight: Tensor, bias: Any, groups: int, eps: Any, silu: Any) -> Any:
    statistics = x.new_empty((x.shape[0], groups), dtype=compute_dtype(x))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@register_fake("group_norm_backward")
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Any, mean: Tensor, rstd: Tensor, silu: Any
) -> Any:
    grad = x.new_empty((x.shape[1],), dtype=compute_dtype(x))
    return torch.empty_like(x), grad, torch.empty_like(grad)
