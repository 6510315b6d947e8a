"""The Bernoulli loss: by itself, with the KL, for K sample sets, and with the last layer."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.backend import has_native, use_native
from vae_fast.functional.checks import check_floating, reduction_code
from vae_fast.functional.likelihood import check_params, check_unit_range, elbo_of, nll_of
from vae_fast.functional.order import check_order
from vae_fast.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS
from vae_fast.types import LossOutput, Reduction

if has_native("cpu"):
    from vae_fast.ops import likelihood as _likelihood
    from vae_fast.ops import linear as _linear


def bernoulli_nll(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
    from_logits: bool = True,
) -> torch.Tensor:
    """-log Bernoulli(target | logits) in nats: binary cross-entropy.

    max(x, 0) - x t + log(1 + exp(-|x|)) per element, for t in [0, 1] (Loaiza-Ganem & Cunningham
    2019 discuss t that is not binary).

    Args:
        logits: (B, ...); with ``from_logits=False``, probabilities in [0, 1], and the result
            matches ``F.binary_cross_entropy`` with its clamps.
        target: same shape; floating in [0, 1], uint8 (x stands for x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).

    Raises:
        RuntimeError: on a CPU, if probabilities or their targets leave [0, 1], like
            ``F.binary_cross_entropy``.
    """
    spec = BERNOULLI if from_logits else BERNOULLI_PROBS
    check_order("logits", logits, "target", target, "bernoulli_nll(logits, target)")
    return nll_of(spec, [logits], target, reduction, ("logits",))


def bce_kl_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    beta: float | torch.Tensor = 1.0,
    reduction: Reduction = "sum",
    from_logits: bool = True,
) -> LossOutput:
    """The negative ELBO of a Bernoulli VAE: ``bernoulli_nll + beta * gaussian_kl``, in one op.

    Kingma & Welling 2014, equation 10; beta as in Higgins et al. 2017.

    Args:
        logits, target: (B, ...), as for ``bernoulli_nll``.
        mu, logvar: (B, ...), as for ``gaussian_kl``; their own shape, the same B.
        beta: the KL's weight, a number or a 0-d tensor (which gets no gradient).
        reduction: "sum" (over everything, as the tutorial's loss), "batchmean" or "none".

    Returns:
        LossOutput(loss, recon, kl) in nats, recon and kl unweighted.
    """
    spec = BERNOULLI if from_logits else BERNOULLI_PROBS
    check_order("logits", logits, "target", target, "bce_kl_loss(logits, target, mu, logvar)")
    return elbo_of(spec, [logits], target, mu, logvar, beta, reduction, ("logits",))


def linear_bernoulli_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """``bernoulli_nll(linear(hidden, weight, bias), target)`` without the logits in memory.

    The last layer of a Bernoulli decoder and its loss in one op. Chunks of samples that fit the
    cache pass through the matrix product, the loss, and the products for the gradients. So logits
    and their gradient never exist as a whole.

    Args:
        hidden: (B, H), the last layer's input.
        weight, bias: (D, H) and (D,) or None, as ``torch.nn.Linear`` has them.
        target: (B, ...) with D features; floating in [0, 1], uint8 (x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = reduction_code(reduction)
    named = [("hidden", hidden), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    for name, t in named:
        check_floating(name, t)
    if _casts(hidden):  # as in torch.nn.Linear
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return linear_bernoulli_nll(hidden, weight, bias, target, reduction=reduction)
    for name, t in named:
        if t.dtype != hidden.dtype or t.device != hidden.device:
            raise ValueError(
                f"{name} is {t.dtype} on {t.device}, hidden {hidden.dtype} on {hidden.device}: "
                "they must be equal"
            )
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be (B, H) and weight (D, H), got {tuple(hidden.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, weight {tuple(weight.shape)}: bias must be "
            f"({weight.shape[0]},)"
        )
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    logits_shape = torch.Size((hidden.shape[0], weight.shape[0]))
    if target.dim() < 2 or target.flatten(1).shape != logits_shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, the layer's output {tuple(logits_shape)}: "
            "samples and features must be equal"
        )
    target = target.flatten(1)
    check_params(BERNOULLI, [hidden.new_empty(()).expand(logits_shape)], target)
    if not use_native(hidden.device.type) or torch.compiler.is_compiling():
        return reference.linear_bernoulli_nll(hidden, weight, bias, target, reduction)
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("target requires grad, which linear_bernoulli_nll has no gradient for")
    return _linear.linear_bernoulli_nll(hidden, weight, bias, target, code)


def _casts(t: torch.Tensor) -> bool:
    """Whether autocast applies to t: it leaves float64 alone, and some devices lack it."""
    device = t.device.type
    return (
        t.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def bernoulli_nll_samples(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    from_logits: bool = True,
    samples_dim: int = 0,
) -> torch.Tensor:
    """-log p(target | logits_k) in nats for K sample sets.

    The importance weights of a Bernoulli decoder need this (Burda et al. 2015). With the K sets in
    dim 0 the target is read in place; in dim 1 it is repeated.

    Args:
        logits: (K, B, ...), or (B, K, ...) with ``samples_dim=1``; probabilities in [0, 1] with
            ``from_logits=False``.
        target: (B, ...); floating in [0, 1], uint8 (x / 255) or bool.

    Returns:
        (K, B), or (B, K) with ``samples_dim=1``, float32 or better.

    Raises:
        RuntimeError: on a CPU, if probabilities or their targets leave [0, 1].
    """
    if samples_dim not in (0, 1):
        raise ValueError(f"samples_dim must be 0 (K, B, ...) or 1 (B, K, ...), got {samples_dim!r}")
    if not isinstance(target, torch.Tensor) or target.dim() < 2:
        raise ValueError("target must be a tensor (B, ...) with its features behind B")
    check_floating("logits", logits)
    spec = BERNOULLI if from_logits else BERNOULLI_PROBS
    shape = list(logits.shape)
    del shape[samples_dim : samples_dim + 1]
    if logits.dim() != target.dim() + 1 or tuple(shape) != tuple(target.shape):
        raise ValueError(
            f"logits must be {'(B, K, ...)' if samples_dim else '(K, B, ...)'} and target (B, ...), "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if samples_dim == 1:
        repeated = target.unsqueeze(1).expand(logits.shape).flatten(0, 1)
        value = nll_of(spec, [logits.flatten(0, 1)], repeated, "none", ("logits",))
        return value.view(logits.shape[:2])
    check_order("logits", logits, "target", target, "(logits, target, ...)")
    check_params(spec, [logits[0]] if len(logits) else [logits.sum(0)], target)
    if not use_native(logits.device.type) or target.requires_grad:
        value = reference.nll(spec, [logits], target)
    else:
        value = _likelihood.nll(spec, [logits], target, 0)
    check_unit_range(spec, value, logits, target)
    return value
