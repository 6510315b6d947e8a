"""Bernoulli, from logits and from probabilities, for targets in [0, 1].

From probabilities it equals ``F.binary_cross_entropy`` with its clamps: logarithms are at least
-100, and the gradient's denominator is at least 1e-12. (Loaiza-Ganem & Cunningham 2019 discuss
targets that are not binary.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.likelihoods.spec import Spec, Truth, draw
from vae_fast.likelihoods.truth import elementwise, log1pexp


def terms(logits: Tensor, target: Tensor) -> Tensor:
    # F.binary_cross_entropy_with_logits is NaN at a logit of -infinity (inf - inf).
    return -(target * F.logsigmoid(logits) + (1.0 - target) * F.logsigmoid(-logits))


def terms_by_probs(probs: Tensor, target: Tensor) -> Tensor:
    # torch.compile cannot trace a function with forward-mode derivatives.
    op = _FromProbabilities if torch.compiler.is_compiling() else _FromProbabilitiesWithTangent
    return op.apply(*torch.broadcast_tensors(probs, target))


class _FromProbabilities(torch.autograd.Function):
    """F.binary_cross_entropy's value, with its gradient (p - t) / max(p (1 - p), 1e-12), which the
    clamp of the logarithms does not affect. If p or the target leaves [0, 1], the value is NaN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, target: Tensor) -> Tensor:
        log_p, log_q = _clamped_logs(p)
        value = -(target * log_p + (1.0 - target) * log_q)
        return torch.where((target >= 0.0) & (target <= 1.0), value, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, target = ctx.saved_tensors
        grad_p = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_p = grad * (p - target) / torch.clamp_min(p * (1.0 - p), 1e-12)
        if ctx.needs_input_grad[1]:
            log_p, log_q = _clamped_logs(p)
            grad_target = grad * (log_q - log_p)
        return grad_p, grad_target


class _FromProbabilitiesWithTangent(_FromProbabilities):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, p_tangent: Tensor | None, target_tangent: Tensor | None) -> Any:
        p, target = ctx.saved_tensors
        tangent = torch.zeros_like(p)
        if p_tangent is not None:
            tangent = p_tangent * (p - target) / torch.clamp_min(p * (1.0 - p), 1e-12)
        if target_tangent is not None:
            log_p, log_q = _clamped_logs(p)
            tangent = tangent + target_tangent * (log_q - log_p)
        return tangent


def _clamped_logs(p: Tensor) -> tuple[Tensor, Tensor]:
    return torch.log(p).clamp_min(-100.0), torch.log1p(-p).clamp_min(-100.0)


def mean(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits)


def mean_by_probs(probs: Tensor) -> Tensor:
    return probs


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.bernoulli(torch.sigmoid(wide), generator=generator).to(logits.dtype)


def sample_by_probs(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.bernoulli(probs, generator=generator)


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Logits up to 20, a tenth of them up to 200; targets 0, 1 or between, a third each."""
    logits = draw(shape, generator, -20.0, 20.0)
    logits = torch.where(draw(shape, generator, 0.0, 1.0) < 0.1, 10.0 * logits, logits)
    target = draw(shape, generator, -1.0, 2.0).clamp(0.0, 1.0)
    return [logits.to(dtype)], target.to(dtype)


def inputs_by_probs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    target = draw(shape, generator, -1.0, 2.0).clamp(0.0, 1.0)
    return [draw(shape, generator, 0.01, 0.99).to(dtype)], target.to(dtype)


def truth(logits: Tensor, target: Tensor) -> Truth:
    return elementwise(
        lambda mp, x, t: t * log1pexp(mp, -x) + (1 - t) * log1pexp(mp, x), logits, target
    )


def truth_by_probs(probs: Tensor, target: Tensor) -> Truth:
    return elementwise(lambda mp, p, t: -(t * mp.log(p) + (1 - t) * mp.log(1 - p)), probs, target)


BERNOULLI = Spec("bernoulli", ("logits",), "unit", terms, mean, sample, inputs, truth)
BERNOULLI_PROBS = Spec(
    "bernoulli_probs",
    ("probs",),
    "unit",
    terms_by_probs,
    mean_by_probs,
    sample_by_probs,
    inputs_by_probs,
    truth_by_probs,
)
SPECS = (BERNOULLI, BERNOULLI_PROBS)
