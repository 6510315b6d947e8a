"""Likelihoods of data in [0, 1] and of real values."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import bernoulli_nll_samples
from vae_fast.joined import joined_mean
from vae_fast.likelihoods import SPECS
from vae_fast.models.likelihoods.common import OfSpec
from vae_fast.reference import as_probability, compute_dtype


class Bernoulli(OfSpec):
    """-log p = softplus(l) - x l, with logits l; x in [0, 1] (Kingma & Welling 2014, appendix C).

    In nats. For grey values between 0 and 1 this is the usual cross-entropy, but not a normalised
    likelihood (Loaiza-Ganem & Cunningham 2019): do not compare it with other likelihoods.
    """

    spec = SPECS["bernoulli"]
    discrete = True

    def _check(self, params: Tensor, x: Tensor) -> None:
        """The op checks the arguments."""

    def nll_samples(self, params: Tensor, x: Tensor) -> Tensor:
        return bernoulli_nll_samples(params, x)  # without K copies of x


class ContinuousBernoulli(OfSpec):
    """-log p = softplus(l) - x l - log C(l), in nats, with logits l: a density on [0, 1] for grey
    values x (Loaiza-Ganem & Cunningham 2019)."""

    spec = SPECS["continuous_bernoulli"]


_LEAST = 0.1  # a log-variance's least start above its floor, where the gradient nearly vanishes


class Gaussian(OfSpec):
    """-log p = (x - m)^2 / (2 s^2) + log s + log(2 pi) / 2, in nats, a density in x.

    ``variance="fixed"`` keeps the standard deviation ``scale`` (1 by default); "shared" learns one
    for all elements (Rybkin et al. 2021, sigma-VAE); "learned" makes the decoder give (m, log s^2)
    for each element.

    A shared s starts at ``scale``, or without it at the first training batch's root mean square
    error, which is optimal for that batch. A bad start would cost thousands of steps, because an
    optimizer changes log s^2 by at most about the learning rate per step. ``started`` records
    whether s has been set, and is saved with the weights.

    A shared or learned log s^2 stays above ``min_logvar``. Without a floor, the density of a
    constant pixel, such as one of a black border, is unbounded and dominates the loss. The floor is
    soft, min_logvar + softplus(log s^2 - min_logvar) as in the sigma-VAE, so every element keeps a
    gradient. At -9, s is 0.011, nearly three of the 255 grey levels.
    """

    started: Tensor

    spec = SPECS["gaussian"]

    def __init__(
        self, variance: str = "fixed", scale: float | None = None, min_logvar: float = -9.0
    ) -> None:
        super().__init__()
        if variance not in ("fixed", "shared", "learned"):
            raise ValueError(f"variance must be fixed, shared or learned, got {variance!r}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale is a standard deviation and must be positive, got {scale}")
        self.variance = variance
        self.min_logvar = min_logvar
        self.parameters_per_element = 2 if variance == "learned" else 1
        start = 0.0 if scale is None else 2.0 * math.log(scale)
        self._waits = variance == "shared" and scale is None  # for the first training batch
        if variance == "shared":
            if scale is not None and start <= min_logvar:
                raise ValueError(
                    f"scale {scale} is a log-variance of {start:.2f}, and min_logvar is "
                    f"{min_logvar}: start above the floor, or lower it"
                )
            start = max(start, min_logvar + _LEAST) if scale is None else start
            above = self._above_floor(torch.tensor(start, dtype=torch.float64))
            self.logvar = nn.Parameter(above.to(torch.get_default_dtype()))
            self.register_buffer("started", torch.tensor(not self._waits))
        else:
            self.register_buffer("logvar", torch.tensor(start), persistent=False)

    def _above_floor(self, logvar: Tensor) -> Tensor:
        """The parameter that the soft floor maps to ``logvar``: its inverse."""
        above = logvar - self.min_logvar
        return self.min_logvar + above + torch.log(-torch.expm1(-above))

    @torch.no_grad()
    def _start(self, square: Tensor) -> None:
        """Start a shared s^2 at the mean of ``square`` over all processes, if it is finite. This
        waits for the device, once."""
        best = joined_mean(square.mean()).to(self.logvar.dtype)
        start = self._above_floor(best.log().clamp_min(self.min_logvar + _LEAST))
        is_finite = best.isfinite()
        self.logvar.copy_(torch.where(is_finite, start, self.logvar))
        self.started.copy_(is_finite)
        self._waits = not (torch.compiler.is_compiling() or bool(is_finite))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: object
    ) -> None:
        if self.variance == "shared" and f"{prefix}logvar" in state_dict:
            # Older weights have no ``started``, and a trained s.
            state_dict.setdefault(f"{prefix}started", torch.ones_like(self.started))
            self._waits = not bool(state_dict[f"{prefix}started"])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def given(self, params: Tensor) -> list[Tensor | float]:
        mean, *of_decoder = self._split(params)
        if self.variance == "fixed":
            return [mean, 0.5 * self.logvar]
        above = (of_decoder[0] if of_decoder else self.logvar) - self.min_logvar
        return [mean, 0.5 * (self.min_logvar + F.softplus(above))]

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        if self._waits and self.training and torch.is_grad_enabled() and not _is_transformed():
            dtype = compute_dtype(params)
            error = as_probability(x, dtype) - self._split(params)[0].to(dtype)
            self._start(error.detach().square())
        return super().data(x, params)


def _is_transformed() -> bool:
    """Whether torch.func or torch.export is active, which forbids changing state."""
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting()


class Laplace(OfSpec):
    """-log p = |x - m| / b + log(2 b), in nats, a density in x; the scale b is fixed."""

    spec = SPECS["laplace"]

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def given(self, params: Tensor) -> list[Tensor | float]:
        return [params, math.log(self.scale)]


class StudentT(OfSpec):
    """Student's t, a density in x with heavy tails; the decoder gives (loc, log s) of each element.

    ``df`` is the degrees of freedom. ``min_log_scale`` is a soft floor of log s, which serves the
    same purpose as ``Gaussian``'s ``min_logvar``.
    """

    spec = SPECS["student_t"]
    parameters_per_element = 2

    def __init__(self, df: float = 5.0, min_log_scale: float = -4.5) -> None:
        super().__init__()
        if not df > 0:
            raise ValueError(f"df, the degrees of freedom, must be positive, got {df}")
        self.df, self.min_log_scale = df, min_log_scale

    def given(self, params: Tensor) -> list[Tensor | float]:
        loc, log_scale = self._split(params)
        return [loc, self.min_log_scale + F.softplus(log_scale - self.min_log_scale), self.df]
