"""Checks of the public functions' arguments."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import overload

import torch

from vae_fast.types import REDUCTIONS

FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_REDUCTION_CODES: dict[str, int] = {name: code for code, name in enumerate(REDUCTIONS)}


@overload
def reduction_code(reduction: str) -> int: ...
@overload
def reduction_code(reduction: str, elementwise: bool) -> int | None: ...
def reduction_code(reduction: str, elementwise: bool = False) -> int | None:
    """The kernels' number of a reduction; None for "elementwise", if that is allowed."""
    if elementwise and isinstance(reduction, str) and reduction == "elementwise":
        return None
    code = _REDUCTION_CODES.get(reduction) if isinstance(reduction, str) else None
    if code is None:
        hint = (
            " (a mean over features would silently change beta; use 'batchmean')"
            if reduction == "mean"
            else ""
        )
        allowed = (*REDUCTIONS, "elementwise") if elementwise else REDUCTIONS
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, allowed))}, got {reduction!r}{hint}"
        )
    return code


def check_count(name: str, value: object, least: int = 1) -> None:
    """TypeError unless ``value`` is a whole number, ValueError if it is below ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_counts(name: str, values: object, least: int = 1) -> None:
    """``check_count`` of each of a sequence: sizes of layers, for example."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {values!r}")
    for value in values:
        check_count(f"each of {name}", value, least)


def check_finite(name: str, t: torch.Tensor) -> None:
    """ValueError if rows of ``t`` (N, ...) hold NaN or infinity: sorting, bins and comparisons would
    make a number of them all the same."""
    wrong = t.isfinite().flatten(1).all(1).logical_not()
    if wrong.any():
        raise ValueError(
            f"{name} hold NaN or infinity in {int(wrong.sum())} of {len(t)} rows, the first of them "
            f"{int(wrong.nonzero()[0])}: leave them out, or look at the model that made them"
        )


def check_floating(name: str, t: torch.Tensor) -> None:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}: "
            f"convert it with {name}.float()"
        )


def check_like(name: str, t: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if t.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, {other_name} has shape {tuple(other.shape)}: "
            "they must be equal"
        )
    if t.device != other.device:
        raise ValueError(
            f"{name} is on {t.device}, {other_name} on {other.device}: move them to one device"
        )


def _expanded(name: str, t: torch.Tensor, like_name: str, like: torch.Tensor) -> torch.Tensor:
    try:
        return t.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{like_name} has shape {tuple(like.shape)}, {name} has shape {tuple(t.shape)}: "
            f"they must be equal, or {name} must broadcast to {like_name}"
        ) from None


def gaussian_pair(
    mu: torch.Tensor, logvar: torch.Tensor | None, mu_name: str = "mu", logvar_name: str = "logvar"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a Gaussian's parameters, broadcast logvar to mu, and convert them to one dtype."""
    if logvar is None:
        raise TypeError(f"{logvar_name} is missing: a Gaussian needs {mu_name} and {logvar_name}")
    check_floating(mu_name, mu)
    check_floating(logvar_name, logvar)
    if logvar.shape != mu.shape:
        logvar = _expanded(logvar_name, logvar, mu_name, mu)
    check_like(mu_name, mu, logvar_name, logvar)
    if mu.dtype != logvar.dtype:
        dtype = torch.promote_types(mu.dtype, logvar.dtype)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
    return mu, logvar


def logvar_of(
    logvar: torch.Tensor | None,
    scale: torch.Tensor,
    name: str = "logvar",
    scale_name: str = "scale",
) -> torch.Tensor:
    """log sigma^2 from a scale; raises if logvar is given too."""
    if logvar is not None:
        raise TypeError(f"{name} and {scale_name} are both given: a Gaussian needs one of them")
    check_floating(scale_name, scale)
    wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
    return 2.0 * torch.log(scale.to(wide))


def with_prior(
    mu: torch.Tensor,
    logvar: torch.Tensor | None,
    prior_mu: torch.Tensor | None,
    prior_logvar: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Check posterior and prior, broadcast the prior to the posterior, and unite their dtypes."""
    mu, logvar = gaussian_pair(mu, logvar)
    if prior_mu is None and prior_logvar is None:
        return mu, logvar, None, None
    if prior_mu is None or prior_logvar is None:
        missing = "prior_mu" if prior_mu is None else "prior_logvar"
        raise TypeError(f"{missing} is missing: give prior_mu and prior_logvar, or neither")
    prior_mu, prior_logvar = gaussian_pair(prior_mu, prior_logvar, "prior_mu", "prior_logvar")
    if prior_mu.device != mu.device:
        raise ValueError(
            f"prior_mu is on {prior_mu.device}, mu on {mu.device}: move them to one device"
        )
    if prior_mu.shape != mu.shape:
        try:
            prior_mu, prior_logvar = prior_mu.expand(mu.shape), prior_logvar.expand(mu.shape)
        except RuntimeError:
            raise ValueError(
                f"prior_mu has shape {tuple(prior_mu.shape)}, which does not broadcast to mu's "
                f"shape {tuple(mu.shape)}"
            ) from None
    if prior_mu.dtype != mu.dtype:
        dtype = torch.promote_types(prior_mu.dtype, mu.dtype)
        mu, logvar, prior_mu, prior_logvar = (
            t.to(dtype) for t in (mu, logvar, prior_mu, prior_logvar)
        )
    return mu, logvar, prior_mu, prior_logvar
