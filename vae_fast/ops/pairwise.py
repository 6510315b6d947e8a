"""Native sums over all pairs of rows: Gaussian log-densities, MMD, nearest codes.

Forward saves only its inputs and its sums; backward computes the pairs again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast import reference_pairwise as reference
from vae_fast.ops.autograd import beyond_native, differentiable_again, distinct, needs_grad
from vae_fast.ops.fake import register_fake
from vae_fast.reference import compute_dtype

_ops = torch.ops.vae_fast
_density = _ops.pair_density.default
_density_backward = _ops.pair_density_backward.default
_mmd = _ops.mmd.default
_mmd_backward = _ops.mmd_backward.default
_nearest_code = _ops.nearest_code.default

Maybe = torch.Tensor | None


class _PairDensity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        logits: Tensor,
        own: Any,
        next: Any,
        offset: int,
        want_parts: bool,
    ) -> Any:
        whole, parts, state = _density(z, mu, logvar, logits, own, next, offset, want_parts)
        ctx.save_for_backward(z, mu, logvar, logits, state)
        ctx.weights, ctx.want_parts = (own, next, offset), want_parts
        ctx.set_materialize_grads(False)
        return whole, parts

    @staticmethod
    def backward(ctx: Any, grad_whole: Maybe, grad_parts: Maybe) -> tuple[Tensor | None, ...]:
        *inputs, state = ctx.saved_tensors
        if not ctx.want_parts:
            grad_parts = None  # forward returned no parts
        if beyond_native(grad_whole, grad_parts):

            def density(
                z: Tensor, mu: Tensor, logvar: Tensor, logits: Maybe
            ) -> tuple[Tensor, Tensor]:
                own, following, offset = ctx.weights
                return reference.pair_density(
                    z, mu, logvar, logits, own, following, offset, ctx.want_parts
                )

            grads = (grad_whole, grad_parts)
            return differentiable_again(density, inputs, grads, ctx.needs_input_grad)
        if grad_whole is None and grad_parts is None:
            return (None,) * 8
        dense = [None if g is None else g.contiguous() for g in (grad_whole, grad_parts)]
        *found, logits = _density_backward(*dense, *inputs, state, *ctx.weights)
        return *found, None if inputs[3] is None else logits, None, None, None, None


def pair_density(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    logits: Maybe = None,
    own: float = 1.0,
    next: float = 1.0,
    offset: float = 0.0,
    want_parts: bool = False,
) -> tuple[Tensor, Tensor]:
    """``reference_pairwise.pair_density``."""
    z, mu, logvar = z.contiguous(), mu.contiguous(), logvar.contiguous()
    logits = None if logits is None else logits.contiguous()
    if needs_grad(z, mu, logvar, logits):
        z, mu, logvar = distinct(z, mu, logvar)
        return _PairDensity.apply(z, mu, logvar, logits, own, next, offset, want_parts)
    return _density(z, mu, logvar, logits, own, next, offset, want_parts)[:2]


class _Mmd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scales: Tensor, bandwidths: Any, kernel: Any, unbiased: bool
    ) -> Any:
        ctx.save_for_backward(x, y, scales)
        ctx.bandwidths, ctx.options = bandwidths, (kernel, unbiased)
        return _mmd(x, y, scales, kernel, unbiased)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scales = ctx.saved_tensors
        if beyond_native(grad):

            def mmd(x: Tensor, y: Tensor) -> Tensor:
                return reference.mmd(x, y, ctx.bandwidths, *ctx.options)

            return differentiable_again(mmd, (x, y), (grad,), ctx.needs_input_grad)
        grads = _mmd_backward(grad.contiguous(), x, y, scales, *ctx.options)
        return *grads, None, None, None, None


def mmd(x: Tensor, y: Tensor, bandwidths: tuple[float, ...], kernel: int, unbiased: bool) -> Tensor:
    """``reference_pairwise.mmd``."""
    x, y = x.contiguous(), y.contiguous()
    scales = torch.tensor(bandwidths, dtype=torch.float64, device="cpu")
    if needs_grad(x, y):
        return _Mmd.apply(*distinct(x, y), scales, bandwidths, kernel, unbiased)
    return _mmd(x, y, scales, kernel, unbiased)


def nearest_code(x: Tensor, codes: Tensor) -> Tensor:
    """``reference_pairwise.nearest_code``."""
    return _nearest_code(x.detach().contiguous(), codes.detach().contiguous())


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@register_fake("pair_density")
def _(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    logits: Tensor,
    own: Any,
    next: Any,
    offset: int,
    want_parts: bool,
) -> Any:
    dtype = compute_dtype(z)
    rows = z.shape[0]
    whole = z.new_empty((rows,), dtype=dtype)
    parts = z.new_empty((rows if want_parts else 0, z.shape[1]), dtype=dtype)
    kept = 1 + (z.shape[1] if want_parts else 0)
    return whole, parts, z.new_empty((rows, kept), dtype=torch.float64)


@register_fake("pair_density_backward")
def _(
    grad_whole: Tensor,
    grad_parts: Tensor,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    logits: Tensor,
    state: Any,
    own: Any,
    next: Any,
    offset: int,
) -> Any:
    of_logits = z.new_empty((0,)) if logits is None else torch.empty_like(logits)
    return torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar), of_logits


@register_fake("mmd")
def _(x: Tensor, y: Tensor, bandwidths: Any, kernel: Any, unbiased: bool) -> Any:
    return x.new_empty((), dtype=compute_dtype(x))


@register_fake("mmd_backward")
def _(grad: Tensor, x: Tensor, y: Tensor, bandwidths: Any, kernel: Any, unbiased: bool) -> Any:
    return torch.empty_like(x), torch.empty_like(y)


@register_fake("nearest_code")
def _(x: Tensor, codes: Tensor) -> Any:
    return x.new_empty((x.shape[0],), dtype=torch.int64)
