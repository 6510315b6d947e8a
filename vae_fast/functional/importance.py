"""The importance-weighted bound."""

from __future__ import annotations

import math

import torch

from vae_fast.functional.bernoulli import bernoulli_nll_samples
from vae_fast.functional.checks import check_floating, gaussian_pair


def iwae_bound(
    logits: torch.Tensor,
    target: torch.Tensor,
    z: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    dreg: bool = False,
    from_logits: bool = True,
    samples_dim: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K-sample bound of a Bernoulli VAE with a standard-normal prior.

    log (1/K) sum_k w_k with log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x): Burda et al.
    2015, equation 8. Its gradient weights each sample's gradient by the normalised weight, as a
    constant (equation 14). Only the logits' gradient has the logits' size; no other such tensor is
    made.

    Args:
        logits: (K, B, ...), the decoder's output for z; probabilities with ``from_logits=False``.
        target: (B, ...); floating in [0, 1], uint8 (x / 255) or bool.
        z: (K, B, D), the samples that logits were decoded from (``reparameterize`` with
            ``num_samples=K``).
        mu, logvar: (B, D), the posterior that z was drawn from.
        dreg: doubly reparameterised gradients for the encoder (Tucker et al. 2018, equation 8); the
            decoder's are unchanged. This adds a hook to z, so use each z in one bound only.
        samples_dim: 1 if logits are (B, K, ...) and z (B, K, D); the target is then repeated.

    Returns:
        (bound, log_weight): (B,) and (K, B), or (B, K) with ``samples_dim=1``, in nats; the loss is
        ``-bound``.
    """
    mu, logvar = gaussian_pair(mu, logvar)
    check_floating("logits", logits)
    check_floating("z", z)
    nll = bernoulli_nll_samples(logits, target, from_logits=from_logits, samples_dim=samples_dim)
    rows = nll.shape[1 - samples_dim]
    if mu.dim() != 2 or len(mu) != rows or tuple(z.shape) != (*nll.shape, mu.shape[1]):
        order = "B, K" if samples_dim else "K, B"
        raise ValueError(
            f"z must be ({order}, D) for logits ({order}, ...) and mu (B, D), got "
            f"{tuple(z.shape)}, {tuple(logits.shape)} and {tuple(mu.shape)}"
        )
    mu, logvar = mu.unsqueeze(samples_dim), logvar.unsqueeze(samples_dim)
    dtype = nll.dtype
    q_mu, q_logvar = (mu.detach(), logvar.detach()) if dreg else (mu, logvar)
    wide = z.to(dtype)
    difference = wide - q_mu.to(dtype)
    q_logvar = q_logvar.to(dtype)
    # log p(z) - log q(z | x), where log 2 pi cancels. Scaled before squared: below a logvar of -88,
    # 1 / variance overflows and the squared difference is 0.
    scaled = difference * torch.exp(-0.5 * q_logvar)
    log_ratio = 0.5 * (scaled * scaled + q_logvar - wide * wide).sum(-1)
    log_weight = log_ratio - nll
    bound = log_mean_exp(log_weight, samples_dim)
    if dreg and z.requires_grad and torch.is_grad_enabled():
        # d bound / d z_k contains one normalised weight. The encoder's estimator needs its square,
        # and z's gradient reaches only the encoder.
        weight = log_weight.detach().softmax(samples_dim).unsqueeze(-1).to(z.dtype)
        z.register_hook(lambda grad: grad * weight)
    return bound, log_weight


def log_mean_exp(log_weight: torch.Tensor, dim: int) -> torch.Tensor:
    """log (1/K) sum_k exp(log_weight_k) over ``dim``; ``negligible`` weights have no gradient."""
    kept = torch.where(negligible(log_weight, dim), log_weight.detach(), log_weight)
    return torch.logsumexp(kept, dim) - math.log(log_weight.shape[dim])


def negligible(log_weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Whether a weight, divided by the largest over ``dim``, is below the square of the rounding.

    Such a weight changes no digit of the gradient. But its products in a backward pass are subnormal
    numbers, which make a matrix product several times slower.
    """
    fixed = log_weight.detach()
    return fixed < fixed.amax(dim, keepdim=True) + 2 * math.log(torch.finfo(fixed.dtype).eps)
