"""The Bernoulli loss: of logits, with the KL, of K sample sets, and with the last layer."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.backend import _libraries, use_native
from vae_fast.functional.checks import bernoulli_pair, check_floating, gaussian_pair, reduction_code
from vae_fast.functional.order import check_order
from vae_fast.types import LossOutput, Reduction

if "cpu" in _libraries:
    from vae_fast.ops import bce_kl as _bce_kl
    from vae_fast.ops import bernoulli as _bernoulli
    from vae_fast.ops import linear as _linear
    from vae_fast.ops import samples as _samples


def bernoulli_nll(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
    from_logits: bool = True,
) -> torch.Tensor:
    """-log Bernoulli(target | logits) in nats: binary cross-entropy, from logits.

    max(x, 0) - x t + log(1 + exp(-|x|)) per element, for t in [0, 1] (Loaiza-Ganem & Cunningham
    2019 discuss t that is not binary).

    Args:
        logits: (B, ...); with ``from_logits=False``, probabilities in [0, 1], and the result
            matches ``F.binary_cross_entropy`` with its clamps.
        target: same shape; floating in [0, 1], uint8 (x stands for x / 255) or bool.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = reduction_code(reduction)
    check_order("logits", logits, "target", target, "bernoulli_nll(logits, target)")
    logits, target = bernoulli_pair(logits, target)
    if not use_native(logits.device.type):
        return reference.bernoulli_nll(logits, target, reduction, from_logits)
    return _bernoulli.bernoulli_nll(logits, target, code, from_logits)


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
    code = reduction_code(reduction)
    check_order("logits", logits, "target", target, "bce_kl_loss(logits, target, mu, logvar)")
    logits, target = bernoulli_pair(logits, target)
    mu, logvar = gaussian_pair(mu, logvar)
    if mu.device != logits.device:
        raise ValueError(f"mu is on {mu.device}, logits on {logits.device}: move to one device")
    if reference.samples_of(mu) != reference.samples_of(logits):
        raise ValueError(
            f"logits has {reference.samples_of(logits)} samples (shape {tuple(logits.shape)}), "
            f"mu has {reference.samples_of(mu)} (shape {tuple(mu.shape)}): they must be equal"
        )
    if isinstance(beta, torch.Tensor):
        if beta.numel() != 1:
            raise ValueError(f"beta must be one number, got a tensor of {tuple(beta.shape)}")
        beta = beta.detach().reshape(())
    elif torch.compiler.is_compiling():  # the op would be compiled for each number by itself
        dtype = torch.promote_types(logits.dtype, torch.float32)
        beta = torch.ones((), dtype=dtype, device=logits.device) * beta
    if not use_native(logits.device.type):
        return reference.bce_kl_loss(logits, target, mu, logvar, beta, reduction, from_logits)
    return _bce_kl.bce_kl_loss(logits, target, mu, logvar, beta, code, from_logits)


def linear_bernoulli_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    *,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """``bernoulli_nll(linear(hidden, weight, bias), target)`` without the logits in memory.

    The last layer of a Bernoulli decoder and its loss in one op: chunks of samples that fit the
    cache go through the matrix product, the loss and the gradients' products, so that logits and
    their gradient are never whole.

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
    if _casts(hidden):  # as torch.nn.Linear does there
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
    bernoulli_pair(hidden.new_empty(()).expand(logits_shape), target)
    if not use_native(hidden.device.type) or torch.compiler.is_compiling():
        return reference.linear_bernoulli_nll(hidden, weight, bias, target, reduction)
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("target requires grad, which linear_bernoulli_nll has no gradient for")
    return _linear.linear_bernoulli_nll(hidden, weight, bias, target, code)


def _casts(t: torch.Tensor) -> bool:
    """Whether autocast is on for t: it leaves float64 as it is, and not every device has it."""
    device = t.device.type
    return (
        t.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def bernoulli_nll_samples(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """-log p(target | logits_k) in nats for K sample sets, without repeating the target.

    What importance weighting needs of a Bernoulli decoder (Burda et al. 2015).

    Args:
        logits: (K, B, ...).
        target: (B, ...); floating in [0, 1], uint8 (x / 255) or bool.

    Returns:
        (K, B), float32 or better.
    """
    if not isinstance(target, torch.Tensor) or target.dim() < 2:
        raise ValueError("target must be a tensor (B, ...) with its features behind B")
    check_floating("logits", logits)
    if logits.dim() != target.dim() + 1 or logits.shape[1:] != target.shape:
        raise ValueError(
            f"logits must be (K, B, ...) and target (B, ...), got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    bernoulli_pair(logits, target.expand_as(logits))
    if not use_native(logits.device.type) or target.requires_grad:
        return reference.bernoulli_nll_samples(logits, target)
    return _samples.bernoulli_nll_samples(logits, target)
