"""The native reparameterize, gaussian_kl and sample_and_kl of a Gaussian.

Forward saves mu, logvar and the noise key, and backward generates eps again from the key. On the
CPU, where the noise is most of the work, forward saves dz/dlogvar instead if it fits the caches.

The kernels number elements by their position in memory. Inputs are made contiguous first, so the
same key gives channels-last and contiguous tensors the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.backend import node
from vae_fast.ops.autograd import beyond_native, differentiable_again, distinct, needs_grad
from vae_fast.ops.fake import register_fake
from vae_fast.ops.layout import dense, like
from vae_fast.reference import compute_dtype
from vae_fast.types import REDUCTIONS

_ops = torch.ops.vae_fast
_reparameterize = _ops.reparameterize.default
_reparameterize_backward = _ops.reparameterize_backward.default
_reparameterize_keeping = _ops.reparameterize_keeping.default
_gaussian_kl = _ops.gaussian_kl.default
_sample_and_kl = _ops.sample_and_kl.default
_sample_and_kl_keeping = _ops.sample_and_kl_keeping.default
_gaussian_backward = _ops.gaussian_backward.default
_gaussian_prior_backward = _ops.gaussian_prior_backward.default

Maybe = torch.Tensor | None


# The largest dz/dlogvar saved for backward. Beyond the caches, reading it costs as much as
# generating the noise again.
KEPT_BYTES = 1 << 22


def keeps_slope(mu: Tensor) -> bool:
    """Whether forward saves dz/dlogvar for backward. Half precision, which rounds it, does not."""
    return (
        not torch.compiler.is_compiling()
        and mu.is_cpu
        and mu.dtype in (torch.float32, torch.float64)
        and mu.numel() * mu.element_size() <= KEPT_BYTES  # fake tensors have no nbytes
    )


def _pair(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    mu = dense(mu)
    return mu, like(logvar, mu)


def _sampled_again(
    ctx: Any, grad_z: Tensor, mu: Tensor, logvar: Tensor, key: Tensor, count: int | None
) -> Any:
    """The gradients by plain PyTorch."""

    def sampled(mu: Tensor, logvar: Tensor) -> Tensor:
        return reference.reparameterize(mu, logvar, count, key)

    return differentiable_again(sampled, (mu, logvar), (grad_z,), ctx.needs_input_grad)


class _Reparameterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, key: Tensor, num_samples: int | None
    ) -> Tensor:
        ctx.save_for_backward(mu, logvar, key)
        ctx.num_samples = num_samples
        return _reparameterize(mu, logvar, key, num_samples)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        mu, logvar, key = ctx.saved_tensors
        if beyond_native(grad_z):
            return _sampled_again(ctx, grad_z, mu, logvar, key, ctx.num_samples)
        grads = _reparameterize_backward(grad_z.contiguous(), logvar, key, ctx.num_samples)
        return *grads, None, None


class _ReparameterizeKeeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, key: Tensor) -> Tensor:
        z, slope = _reparameterize_keeping(mu, logvar, key)
        ctx.save_for_backward(mu, logvar, key, slope)  # second derivatives need the first three
        return z

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        mu, logvar, key, slope = ctx.saved_tensors
        if beyond_native(grad_z):
            return _sampled_again(ctx, grad_z, mu, logvar, key, None)
        return grad_z, grad_z * slope, None


def reparameterize(mu: Tensor, logvar: Tensor, key: Tensor, num_samples: int | None) -> Tensor:
    mu, logvar = mu.contiguous(), logvar.contiguous()
    if needs_grad(mu, logvar):
        mu, logvar = distinct(mu, logvar)
        if num_samples is None and keeps_slope(mu):
            return _ReparameterizeKeeping.apply(mu, logvar, key)
        return _Reparameterize.apply(mu, logvar, key, num_samples)
    return _reparameterize(mu, logvar, key, num_samples)


def _backward(
    grad_z: Maybe,
    grad_kl: Maybe,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Maybe,
    prior_logvar: Maybe,
    key: Maybe,
    slope: Maybe,
    reduction: int,
) -> tuple[Maybe, Maybe, Maybe, Maybe]:
    """Gradients of mu, logvar and the prior, from those of z and of the KL, or one of the two."""
    if grad_z is None and grad_kl is None:
        return None, None, None, None
    if grad_z is not None:
        grad_z = like(grad_z, mu)
    if grad_kl is not None:
        grad_kl = grad_kl.contiguous()
    if prior_mu is None or grad_kl is None:
        grads = _gaussian_backward(grad_z, grad_kl, mu, logvar, key, slope, reduction)
        return *grads, None, None
    return _gaussian_prior_backward(
        grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, key, slope, reduction
    )


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, reduction: int
    ) -> Tensor:
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar)
        ctx.reduction = reduction
        return _gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        if beyond_native(grad_kl):

            def kl(mu: Tensor, logvar: Tensor, prior_mu: Maybe, prior_logvar: Maybe) -> Tensor:
                kind = REDUCTIONS[ctx.reduction]
                return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, kind)

            return differentiable_again(kl, ctx.saved_tensors, (grad_kl,), ctx.needs_input_grad)
        mu, logvar, prior_mu, prior_logvar = ctx.saved_tensors
        made = _backward(
            None, grad_kl, mu, logvar, prior_mu, prior_logvar, None, None, ctx.reduction
        )
        return *made, None


class _SampleAndKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        prior_mu: Tensor,
        prior_logvar: Tensor,
        key: Tensor,
        reduction: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.reduction = reduction
        ctx.set_materialize_grads(False)
        if keeps_slope(mu):
            z, kl, slope = _sample_and_kl_keeping(
                mu, logvar, prior_mu, prior_logvar, key, reduction
            )
            ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar, key, slope)
        else:
            z, kl = _sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, reduction)
            ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar, key, None)
        return z, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Maybe, grad_kl: Maybe) -> tuple[Tensor | None, ...]:
        mu, logvar, prior_mu, prior_logvar, key, slope = ctx.saved_tensors
        if beyond_native(grad_z, grad_kl):

            def sampled(
                mu: Tensor, logvar: Tensor, prior_mu: Maybe, prior_logvar: Maybe
            ) -> tuple[Tensor, Tensor]:
                kind = REDUCTIONS[ctx.reduction]
                return reference.sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, kind)

            gaussians, grads = (mu, logvar, prior_mu, prior_logvar), (grad_z, grad_kl)
            return differentiable_again(sampled, gaussians, grads, ctx.needs_input_grad)
        key = key if slope is None else None  # either determines the noise
        made = _backward(
            grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, key, slope, ctx.reduction
        )
        return *made, None, None


def _prior(mu: Tensor, prior_mu: Maybe, prior_logvar: Maybe) -> tuple[Maybe, Maybe]:
    if prior_mu is None:
        return None, None
    assert prior_logvar is not None  # checked: both or neither
    return like(prior_mu, mu), like(prior_logvar, mu)


def gaussian_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Maybe, prior_logvar: Maybe, reduction: int
) -> Tensor:
    mu, logvar = _pair(mu, logvar)
    prior_mu, prior_logvar = _prior(mu, prior_mu, prior_logvar)
    if needs_grad(mu, logvar, prior_mu, prior_logvar):
        return _GaussianKL.apply(*distinct(mu, logvar, prior_mu, prior_logvar), reduction)
    return _gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)


def sample_and_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Maybe, prior_logvar: Maybe, key: Tensor, reduction: int
) -> tuple[Tensor, Tensor]:
    mu, logvar = mu.contiguous(), logvar.contiguous()
    prior_mu, prior_logvar = _prior(mu, prior_mu, prior_logvar)
    if needs_grad(mu, logvar, prior_mu, prior_logvar):
        gaussians = distinct(mu, logvar, prior_mu, prior_logvar)
        return _SampleAndKL.apply(*gaussians, key, reduction)
    return _sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, reduction)


# --- nodes in C++, for small calls ----------------------------------------------------------------


def small_reparameterize(mu: object, logvar: object, key: object) -> Maybe:
    """``reparameterize`` by a C++ node, which checks its arguments and draws a missing key. None
    for calls that it does not serve."""
    if node is None or torch.compiler.is_compiling():
        return None
    return node.reparameterize(mu, logvar, key, KEPT_BYTES)


def small_kl(
    mu: object, logvar: object, prior_mu: object, prior_logvar: object, reduction: int
) -> Maybe:
    """``gaussian_kl`` by a C++ node, like ``small_reparameterize``."""
    if node is None or torch.compiler.is_compiling():
        return None
    return node.gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)


def small_sample_and_kl(
    mu: object, logvar: object, prior_mu: object, prior_logvar: object, key: object, reduction: int
) -> tuple[Tensor, Tensor] | None:
    """``sample_and_kl`` by a C++ node, like ``small_reparameterize``."""
    if node is None or torch.compiler.is_compiling():
        return None
    return node.sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, reduction, KEPT_BYTES)


def grads_again(
    samples: bool,
    has_kl: bool,
    reduction: int,
    saved: Sequence[Any],
    upstream: Sequence[Any],
    needs: Sequence[bool],
) -> Sequence[Maybe]:
    """The gradients that a C++ node cannot compute itself.

    ``saved``: mu, logvar, the prior's mu and logvar, and the noise key. ``upstream``: the gradients
    of z, of the KL, or of both."""
    *gaussians, key = saved
    if beyond_native(*upstream):

        def values(
            mu: Tensor, logvar: Tensor, prior_mu: Maybe, prior_logvar: Maybe
        ) -> Sequence[Tensor]:
            kind = REDUCTIONS[reduction]
            if not has_kl:
                return (reference.reparameterize(mu, logvar, None, key),)
            if not samples:
                return (reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, kind),)
            return reference.sample_and_kl(mu, logvar, prior_mu, prior_logvar, key, kind)

        return differentiable_again(values, gaussians, upstream, needs)
    if not has_kl:
        (grad_z,) = upstream
        grads = _reparameterize_backward(grad_z.contiguous(), gaussians[1], key, None)
        return *grads, None, None, None
    grad_z, grad_kl = upstream if samples else (None, *upstream)
    if grad_z is None:
        key = None
    mu, logvar, prior_mu, prior_logvar = gaussians
    made = _backward(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, key, None, reduction)
    return *made, None


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


def empty_sum(t: Tensor, reduction: int) -> Tensor:
    """An empty tensor for the loss of ``t``: 0-d, or with reduction "none" (0) one per sample."""
    shape = (t.shape[0],) if reduction == 0 and t.dim() >= 2 else ()
    return t.new_empty(shape, dtype=compute_dtype(t))


@register_fake("reparameterize")
def _(mu: Tensor, logvar: Tensor, key: Tensor, num_samples: int) -> Any:
    return torch.empty_like(mu) if num_samples is None else mu.new_empty((num_samples, *mu.shape))


@register_fake("reparameterize_backward")
def _(grad_z: Tensor, logvar: Tensor, key: Tensor, num_samples: int) -> Any:
    return torch.empty_like(logvar), torch.empty_like(logvar)


@register_fake("reparameterize_keeping")
def _(mu: Tensor, logvar: Tensor, key: Tensor) -> Any:
    return torch.empty_like(mu), torch.empty_like(mu)


@register_fake("gaussian_kl")
def _(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, reduction: int) -> Any:
    return empty_sum(mu, reduction)


@register_fake("sample_and_kl")
def _(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, key: Tensor, reduction: int
) -> Any:
    return torch.empty_like(mu), empty_sum(mu, reduction)


@register_fake("sample_and_kl_keeping")
def _(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, key: Tensor, reduction: int
) -> Any:
    return torch.empty_like(mu), empty_sum(mu, reduction), torch.empty_like(mu)


@register_fake("gaussian_backward")
def _(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    key: Tensor,
    slope: Tensor,
    reduction: int,
) -> Any:
    return torch.empty_like(mu), torch.empty_like(mu)


@register_fake("gaussian_prior_backward")
def _(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    key: Tensor,
    slope: Tensor,
    reduction: int,
) -> Any:
    return tuple(torch.empty_like(mu) for _ in range(4))
