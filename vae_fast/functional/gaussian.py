"""Sampling from a Gaussian posterior, and its KL."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.backend import _libraries, use_native
from vae_fast.functional.checks import gaussian_pair, reduction_code, with_prior
from vae_fast.noise import check_key, new_key
from vae_fast.types import Reduction

if "cpu" in _libraries:
    from vae_fast.ops import gaussian as _gaussian


def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    num_samples: int | None = None,
    noise_key: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample z = mu + exp(logvar / 2) * eps with eps ~ N(0, 1).

    The reparameterisation trick of Kingma & Welling 2014, section 2.4.

    Args:
        mu, logvar: (..., D), same shape; logvar is log sigma^2.
        num_samples: K draws per element, stacked in front; None for one draw without that dim.
        noise_key: int64 tensor of 2 elements that fixes eps (``vae_fast.noise.new_key``); drawn
            from torch's generator when None.

    Returns:
        z: (..., D), or (K, ..., D) with ``num_samples=K``; its dtype is what mu's and logvar's
        promote to.

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that don't fit.
    """
    mu, logvar = gaussian_pair(mu, logvar)
    whole = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    if num_samples is not None and (not whole or num_samples < 1):
        raise ValueError(f"num_samples must be a positive integer or None, got {num_samples!r}")
    if noise_key is not None:
        noise_key = check_key(noise_key, mu.device)
    if not use_native(mu.device.type):
        return reference.reparameterize(mu, logvar, num_samples, noise_key)
    if noise_key is None:
        noise_key = new_key(mu.device)
    return _gaussian.reparameterize(mu, logvar, noise_key, num_samples)


def gaussian_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || p) in nats, to N(0, 1) or to the Gaussian given.

    Kingma & Welling 2014, appendix B: 0.5 * (exp(logvar) + mu^2 - 1 - logvar) per element.

    Args:
        mu, logvar: (B, ...), same shape; logvar is log sigma^2.
        prior_mu, prior_logvar: the prior's parameters, broadcast to mu's shape; both or neither.
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none" (B,).
    """
    code = reduction_code(reduction)
    mu, logvar, prior_mu, prior_logvar = with_prior(mu, logvar, prior_mu, prior_logvar)
    if not use_native(mu.device.type):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)
    return _gaussian.gaussian_kl(mu, logvar, prior_mu, prior_logvar, code)


def sample_and_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    noise_key: torch.Tensor | None = None,
    reduction: Reduction = "sum",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``reparameterize`` and ``gaussian_kl`` of the same Gaussian in one pass over it.

    Returns:
        (z, kl): z has mu's shape and the dtype that the inputs' promote to; kl is in nats, reduced
        as asked.
    """
    code = reduction_code(reduction)
    mu, logvar, prior_mu, prior_logvar = with_prior(mu, logvar, prior_mu, prior_logvar)
    if noise_key is not None:
        noise_key = check_key(noise_key, mu.device)
    if not use_native(mu.device.type):
        return reference.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, reduction)
    if noise_key is None:
        noise_key = new_key(mu.device)
    return _gaussian.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, code)
