"""Sampling from a Gaussian posterior, and its KL."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Literal, overload

import torch

from vae_fast import reference
from vae_fast.backend import has_native, takes_small_calls, use_native
from vae_fast.functional.checks import (
    check_floating,
    gaussian_pair,
    logvar_of,
    reduction_code,
    with_prior,
)
from vae_fast.noise import check_key, new_key
from vae_fast.types import TermsReduction

if has_native("cpu"):
    from vae_fast.ops import gaussian as _gaussian


def split_moments(
    parameters: torch.Tensor, *, dim: int = 1, bounds: tuple[float, float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """mu and logvar from stacked moments, the usual output of an encoder.

    Args:
        parameters: (B, 2 C, ...), mu in the first half of ``dim`` and logvar in the second.
        bounds: limits of logvar; clamped values have no gradient. Stable Diffusion's autoencoders
            (Rombach et al. 2022) use (-30, 20).

    Returns:
        (mu, logvar), each (B, C, ...); views, except a clamped logvar.
    """
    check_floating("parameters", parameters)
    if not isinstance(dim, int):
        raise TypeError(f"dim must be a whole number, got {dim!r}")
    if bounds is not None:
        real = isinstance(bounds, Sequence) and all(isinstance(b, Real) for b in bounds)
        if not real or len(bounds) != 2 or not bounds[0] <= bounds[1]:
            raise ValueError(f"bounds must be the least and the greatest logvar, got {bounds!r}")
    if not -parameters.dim() <= dim < parameters.dim() or parameters.shape[dim] % 2:
        raise ValueError(
            f"parameters must have an even size in dim {dim}, which holds mu and logvar; got "
            f"{tuple(parameters.shape)}"
        )
    mu, logvar = parameters.chunk(2, dim) if parameters.shape[dim] else (parameters, parameters)
    return mu, logvar if bounds is None else logvar.clamp(*bounds)


def _key(
    mu: torch.Tensor,
    noise_key: torch.Tensor | None,
    generator: torch.Generator | None,
    eps: torch.Tensor | None,
) -> torch.Tensor | None:
    """The given noise key, or one drawn from the given generator, or None."""
    # The usual call; checks take most of a small call's time.
    if generator is None and eps is None:
        return None if noise_key is None else check_key(noise_key, mu.device)
    noises = {"noise_key": noise_key, "generator": generator, "eps": eps}
    given = [name for name, value in noises.items() if value is not None]
    if len(given) > 1:
        raise TypeError(f"{' and '.join(given)} are given: each of them fixes the noise, give one")
    return None if generator is None else new_key(mu.device, generator)


def _noise(
    mu: torch.Tensor, dtype: torch.dtype, num_samples: int | None, key: torch.Tensor | None
) -> torch.Tensor:
    """The eps of ``reparameterize`` for a key, or new ones."""
    if use_native(mu.device.type):
        zeros = torch.zeros(mu.shape, dtype=dtype, device=mu.device)
        key = new_key(mu.device) if key is None else key
        return _gaussian.reparameterize(zeros, zeros, key, num_samples)
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    if key is None:
        return torch.randn(shape, dtype=dtype, device=mu.device)
    return reference.normal(key, tuple(shape), dtype)


def _check_eps(eps: torch.Tensor, mu: torch.Tensor, num_samples: int | None) -> None:
    check_floating("eps", eps)
    shape = tuple(mu.shape) if num_samples is None else (num_samples, *mu.shape)
    if tuple(eps.shape) != shape or eps.device != mu.device:
        raise ValueError(
            f"eps has shape {tuple(eps.shape)} on {eps.device}, and mu asks for {shape} on "
            f"{mu.device}: they must be equal"
        )


@overload
def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = ...,
    *,
    scale: torch.Tensor | None = ...,
    num_samples: int | None = ...,
    noise_key: torch.Tensor | None = ...,
    generator: torch.Generator | None = ...,
    eps: torch.Tensor | None = ...,
    return_eps: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = ...,
    *,
    scale: torch.Tensor | None = ...,
    num_samples: int | None = ...,
    noise_key: torch.Tensor | None = ...,
    generator: torch.Generator | None = ...,
    eps: torch.Tensor | None = ...,
    return_eps: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = ...,
    *,
    scale: torch.Tensor | None = ...,
    num_samples: int | None = ...,
    noise_key: torch.Tensor | None = ...,
    generator: torch.Generator | None = ...,
    eps: torch.Tensor | None = ...,
    return_eps: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...
def reparameterize(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    num_samples: int | None = None,
    noise_key: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: torch.Tensor | None = None,
    return_eps: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Sample z = mu + exp(logvar / 2) * eps with eps ~ N(0, 1).

    The reparameterisation trick of Kingma & Welling 2014, section 2.4. With ``scale``, ``eps`` or
    ``return_eps``, plain PyTorch computes z; a key gives the same noise.

    Args:
        mu: (..., D).
        logvar: log sigma^2, of mu's shape or broadcast to it.
        scale: sigma, instead of logvar.
        num_samples: K draws per element, stacked in a new first dim; None for one draw without it.
        noise_key: int64 tensor of 2 elements that fixes eps (``vae_fast.noise.new_key``); drawn
            from torch's generator when None.
        generator: the generator from which the key is drawn, on mu's device.
        eps: the noise itself, of z's shape.
        return_eps: return (z, eps).

    Returns:
        z: (..., D), or (K, ..., D) with ``num_samples=K``; its dtype is the promotion of mu's and
        logvar's.

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that don't fit.
    """
    plain = scale is None and generator is None and eps is None and not return_eps
    if plain and num_samples is None and takes_small_calls():
        z = _gaussian.small_reparameterize(mu, logvar, noise_key)
        if z is not None:
            return z
    if scale is not None and logvar is not None:
        raise TypeError("logvar and scale are both given: a Gaussian needs one of them")
    name, spread = ("logvar", logvar) if scale is None else ("scale", scale)
    mu, spread = gaussian_pair(mu, spread, logvar_name=name)
    whole = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    if num_samples is not None and (not whole or num_samples < 1):
        raise ValueError(f"num_samples must be a positive integer or None, got {num_samples!r}")
    noise_key = _key(mu, noise_key, generator, eps)
    if scale is None and eps is None and not return_eps:
        if not use_native(mu.device.type):
            return reference.reparameterize(mu, spread, num_samples, noise_key)
        if noise_key is None:
            noise_key = new_key(mu.device)
        return _gaussian.reparameterize(mu, spread, noise_key, num_samples)
    wide = reference.compute_dtype(mu)
    if eps is None:
        eps = _noise(mu, wide, num_samples, noise_key)
    else:
        _check_eps(eps, mu, num_samples)
    sigma = spread.to(wide) if scale is not None else torch.exp(0.5 * spread.to(wide))
    z = torch.addcmul(mu.to(wide), sigma, eps.to(wide)).to(mu.dtype)
    return (z, eps.to(mu.dtype)) if return_eps else z


def gaussian_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = None,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    prior_scale: torch.Tensor | None = None,
    reduction: TermsReduction = "sum",
) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || p) in nats; p is N(0, 1) or a given Gaussian.

    Kingma & Welling 2014, appendix B: 0.5 * (exp(logvar) + mu^2 - 1 - logvar) per element.

    Args:
        mu: (B, ...).
        logvar: log sigma^2, of mu's shape or broadcast to it.
        prior_mu, prior_logvar: the prior's parameters, broadcast to mu's shape; both or neither.
        scale, prior_scale: sigma, instead of logvar and prior_logvar; plain PyTorch takes its
            logarithm.
        reduction: "sum", "batchmean" (sum over features, mean over samples), "none" (B,), or
            "elementwise", of mu's shape, in plain PyTorch.
    """
    code = reduction_code(reduction, elementwise=True)
    plain = scale is None and prior_scale is None
    if plain and code is not None and takes_small_calls():
        kl = _gaussian.small_kl(mu, logvar, prior_mu, prior_logvar, code)
        if kl is not None:
            return kl
    if scale is not None:
        logvar = logvar_of(logvar, scale)
    if prior_scale is not None:
        prior_logvar = logvar_of(prior_logvar, prior_scale, "prior_logvar", "prior_scale")
    mu, logvar, prior_mu, prior_logvar = with_prior(mu, logvar, prior_mu, prior_logvar)
    if code is None:
        return reference.gaussian_kl_terms(mu, logvar, prior_mu, prior_logvar)
    if not use_native(mu.device.type):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction)
    return _gaussian.gaussian_kl(mu, logvar, prior_mu, prior_logvar, code)


def sample_and_kl(
    mu: torch.Tensor,
    logvar: torch.Tensor | None = None,
    prior_mu: torch.Tensor | None = None,
    prior_logvar: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | None = None,
    prior_scale: torch.Tensor | None = None,
    noise_key: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: torch.Tensor | None = None,
    return_eps: bool = False,
    reduction: TermsReduction = "sum",
) -> tuple[torch.Tensor, ...]:
    """``reparameterize`` and ``gaussian_kl`` of the same Gaussian; see these for the arguments.

    This is one pass, except with ``scale``, ``eps``, ``return_eps`` or the reduction "elementwise",
    which use plain PyTorch.

    Returns:
        (z, kl), or (z, kl, eps) with ``return_eps``. z has mu's shape and the promoted dtype of the
        inputs; kl is in nats.
    """
    code = reduction_code(reduction, elementwise=True)
    if scale is not None or eps is not None or return_eps or code is None:
        sampled = reparameterize(
            mu, logvar, scale=scale, noise_key=noise_key, generator=generator, eps=eps,
            return_eps=return_eps,
        )  # fmt: skip
        kl = gaussian_kl(
            mu, logvar, prior_mu, prior_logvar,
            scale=scale, prior_scale=prior_scale, reduction=reduction,
        )  # fmt: skip
        return (sampled[0], kl, sampled[1]) if isinstance(sampled, tuple) else (sampled, kl)
    if prior_scale is None and generator is None and takes_small_calls():
        both = _gaussian.small_sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, code)
        if both is not None:
            return both
    if prior_scale is not None:
        prior_logvar = logvar_of(prior_logvar, prior_scale, "prior_logvar", "prior_scale")
    mu, logvar, prior_mu, prior_logvar = with_prior(mu, logvar, prior_mu, prior_logvar)
    noise_key = _key(mu, noise_key, generator, None)
    if not use_native(mu.device.type):
        return reference.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, reduction)
    if noise_key is None:
        noise_key = new_key(mu.device)
    return _gaussian.sample_and_kl(mu, logvar, prior_mu, prior_logvar, noise_key, code)
