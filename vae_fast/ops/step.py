"""A training step's ops on a GPU, apart from the matrix products: csrc/ops/step.h.

The CPU versions are plain PyTorch, for tests only; the CPU's native step is in csrc/step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.ops.fake import register_fake

Maybe = torch.Tensor | None

_ops = torch.ops.vae_fast
step_sample = _ops.step_sample.default
step_sample_backward = _ops.step_sample_backward.default
step_decide = _ops.step_decide.default
step_update = _ops.step_update.default

MOST_PARTS = 64  # csrc/ops/step.h


def _check(*tensors: Maybe) -> None:
    """Refuse what csrc/torch/step.h refuses on a GPU, so that a test on the CPU shows it."""
    for t in tensors:
        if t is not None and (t.dtype != torch.float32 or not t.is_contiguous()):
            raise TypeError(
                f"a step's tensors must be contiguous float32, got {t.dtype} of shape "
                f"{tuple(t.shape)}, strides {t.stride()}"
            )


@torch.library.impl("vae_fast::step_sample", "CPU")
def _(heads: Any, key: Tensor) -> Any:
    _check(heads)
    mu, logvar = heads.tensor_split(2, 1)
    return reference.reparameterize(mu, logvar, None, key)


@torch.library.impl("vae_fast::step_sample_backward", "CPU")
def _(grad_z: Tensor, heads: Any, key: Tensor, beta: Any, scale: Any) -> Any:
    _check(grad_z, heads, beta)
    mu, logvar = heads.tensor_split(2, 1)
    eps = reference.normal(key, tuple(mu.shape), mu.dtype)
    factor = beta.view(()) * scale
    of_logvar = 0.5 * (torch.exp(0.5 * logvar) * eps * grad_z + torch.expm1(logvar) * factor)
    return torch.cat([grad_z + mu * factor, of_logvar], 1)


@torch.library.impl("vae_fast::step_decide", "CPU")
def _(
    gradients: Tensor, ranges: Any, columns: Any, places: Any, recon: Any, heads: Any, beta: Any, steps: Any, usual: Any, sums: Any, rows: Any, guard: Any, beta1: Any,
    beta2: Any,
) -> Any:  # fmt: skip
    _check(gradients, *columns, recon, heads, beta, steps, usual)
    clip, skip_above, patience, settling, followed = guard
    parts = [gradients[b : b + n] for b, n in zip(ranges[::2], ranges[1::2], strict=True)]
    for part, place in zip(columns, places, strict=True):
        parts.append(gradients[place : place + part.shape[1]].copy_(part.double().sum(0)))
    norm = torch.cat(parts).norm().item()
    kl = 0.0
    if heads is not None:
        mu, logvar = heads.tensor_split(2, 1)
        kl = reference.gaussian_kl(mu, logvar, None, None, "batchmean").item()
    terms = [recon.item() + beta.item() * kl, recon.item(), kl]
    if not math.isfinite(terms[0]):
        norm = math.nan
    mean, taken, in_row = usual.tolist()
    active = skip_above > 0 and taken >= settling and in_row < patience
    skipped = not norm <= (skip_above * mean if active else torch.finfo(torch.float32).max)
    if skip_above > 0:
        if not skipped:
            taken += 1
            mean += max(1 / taken, followed) * (norm - mean)
        usual.copy_(torch.tensor([mean, taken, in_row + 1 if skipped else 0.0]))
    steps.add_(0.0 if skipped else 1.0)
    if not skipped:
        sums.add_(torch.tensor([*terms, 1.0], dtype=torch.float64), alpha=rows)
    divisor = max(norm / clip, 1.0) if clip > 0 else 1.0
    rests = [1 - b ** steps.item() for b in (beta1, beta2)]
    return gradients.new_tensor([norm, float(skipped), divisor, *rests])


@torch.library.impl("vae_fast::step_update", "CPU")
def _(
    weights: Any, gradients: Tensor, first: Any, second: Any, average: Any, outcome: Any, lr: Any, average_weight: Any, beta1: Any, beta2: Any, eps: Any,
    weight_decay: Any, decoupled: Any, maximize: Any,
) -> None:  # fmt: skip
    _check(weights, gradients, first, second, average, outcome, lr, average_weight)
    _, skipped, divisor, rest1, rest2 = outcome.unbind()
    if not skipped:
        gradient = gradients / divisor
        gradient = -gradient if maximize else gradient
        if decoupled:
            weights.mul_(1 - lr * weight_decay)
        else:
            gradient = gradient + weight_decay * weights
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weights.sub_(lr / rest1 * first / ((second / rest2).sqrt() + eps))
    if average is not None:
        average.lerp_(weights, average_weight)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@register_fake("step_sample")
def _(heads: Any, key: Tensor) -> Any:
    return heads.new_empty((heads.shape[0], heads.shape[1] // 2))


@register_fake("step_sample_backward")
def _(grad_z: Tensor, heads: Any, key: Tensor, beta: Any, scale: Any) -> Any:
    return torch.empty_like(heads)


@register_fake("step_decide")
def _(gradients: Tensor, *_: Any) -> Any:
    return gradients.new_empty((5,))


@register_fake("step_update")
def _(*_: Any) -> None:
    return None
