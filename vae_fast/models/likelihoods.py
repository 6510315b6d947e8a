"""Likelihoods p(x | z): what a decoder's output means.

Every likelihood says how many parameters it needs for each element of x
(``parameters_per_element``, P): for data of shape (C, ...) the decoder gives (P * C, ...), the
parameters stacked along the first dimension. ``nll`` is in nats, ``mean`` is E[x | z] on the data's
own scale. Data of dtype uint8 stand for x / 255 in [0, 1] and bool for {0, 1}; only the categorical
likelihood reads integers as classes.

Densities (Gaussian, Laplace) and probabilities (Bernoulli, categorical) are not comparable;
``discrete`` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import bce_kl_loss, bernoulli_nll, bernoulli_nll_samples, gaussian_kl
from vae_fast.reference import as_probability, compute_dtype, reduce
from vae_fast.types import LossOutput, Reduction


class Likelihood(nn.Module):
    """What every p(x | z) offers; a new one implements ``nll`` and ``mean``."""

    parameters_per_element: int = 1
    discrete: bool = False

    def parameters_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """What a decoder has to give for data of ``shape`` (C, ...): (P * C, ...)."""
        return (self.parameters_per_element * shape[0], *shape[1:])

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        """-log p(x | z) in nats. ``params``: (N, P * C, ...), ``x``: (N, C, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must implement nll(params, x)")

    def nll_samples(self, params: Tensor, x: Tensor) -> Tensor:
        """-log p(x | z_k), (K, N), for the parameters (K, N, P * C, ...) of K samples of z."""
        k, n = params.shape[:2]
        repeated = x.expand(k, *x.shape).flatten(0, 1)
        return self.nll(params.flatten(0, 1), repeated, reduction="none").view(k, n)

    def mean(self, params: Tensor) -> Tensor:
        """E[x | z], of the shape of x."""
        raise NotImplementedError(f"{type(self).__name__} must implement mean(params)")

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw x ~ p(x | z), of the shape of x."""
        raise NotImplementedError(f"{type(self).__name__} must implement sample(params)")

    def loss(
        self,
        params: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        """-log p(x | z) + beta * KL(N(mu, exp(logvar)) || N(0, 1)), in nats."""
        recon = self.nll(params, x, reduction=reduction)
        kl = gaussian_kl(mu, logvar, reduction=reduction)
        return LossOutput(recon + beta * kl, recon, kl)

    def _split(self, params: Tensor, x: Tensor | None = None) -> tuple[Tensor, ...]:
        """The P parameters, each of the shape of x."""
        if x is not None:
            wanted = (x.shape[0], self.parameters_per_element * x.shape[1], *x.shape[2:])
            if tuple(params.shape) != wanted:
                raise ValueError(
                    f"{type(self).__name__} needs {self.parameters_per_element} parameter(s) per "
                    f"element of x: for x of shape {tuple(x.shape)} the decoder must give {wanted},"
                    f" not {tuple(params.shape)}"
                )
        return params.chunk(self.parameters_per_element, dim=1)


class Bernoulli(Likelihood):
    """-log p = softplus(l) - x l, with logits l; x in [0, 1] (Kingma & Welling 2014, appendix C).

    In nats. For grey values strictly between 0 and 1 this is the customary cross-entropy, not a
    normalised likelihood (Loaiza-Ganem & Cunningham 2019): compare it only with itself.
    """

    discrete = True

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        return bernoulli_nll(params, x, reduction=reduction)

    def nll_samples(self, params: Tensor, x: Tensor) -> Tensor:
        return bernoulli_nll_samples(params, x)  # without K copies of x

    def loss(
        self,
        params: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        return bce_kl_loss(params, x, mu, logvar, beta=beta, reduction=reduction)

    def mean(self, params: Tensor) -> Tensor:
        return torch.sigmoid(params)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(params), generator=generator)


_LEAST = 0.1  # above its floor, where a log-variance may start: below, it has hardly a gradient


class Gaussian(Likelihood):
    """-log p = (x - m)^2 / (2 s^2) + log s + log(2 pi) / 2, in nats, a density in x.

    ``variance="fixed"`` keeps the standard deviation ``scale`` (1 if left out); "shared" learns one
    for all elements (Rybkin et al. 2021, sigma-VAE); "learned" has the decoder give (m, log s^2)
    for each element.

    A shared s starts at ``scale`` or, if that is left out, at the first training batch's root mean
    square error, the s that is best for it: an optimizer moves log s^2 by no more than about its
    learning rate a step, so a start far off costs thousands of steps. ``started`` tells, and is
    saved with the weights.

    A learned log s^2 stays above ``min_logvar``: the density of a pixel that is always right, a
    black border say, is unbounded without a floor, and the loss falls for ever while all else
    stands still. The floor is soft, min_logvar + softplus(log s^2 - min_logvar) as in the
    sigma-VAE, so that no element is cut off from its gradient. At -9, s is 0.011, nearly three of
    the 255 grey levels.
    """

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
        self._waits = variance == "shared" and scale is None  # for the first batch: not ``started``
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
        """The parameter that the soft floor makes ``logvar``."""
        above = logvar - self.min_logvar
        return self.min_logvar + above + torch.log(-torch.expm1(-above))

    @torch.no_grad()
    def _start(self, square: Tensor) -> None:
        """Let a shared s^2 begin at the mean of ``square``, over the whole batch of all processes.

        This waits for the device, once. A batch that is not finite is not started from.
        """
        from vae_fast.models.base import joined_mean

        mean = square.mean()
        joined = joined_mean(mean)
        best = (mean if joined is None else joined).to(self.logvar.dtype)
        start = self._above_floor(best.log().clamp_min(self.min_logvar + _LEAST))
        is_finite = best.isfinite()
        self.logvar.copy_(torch.where(is_finite, start, self.logvar))
        self.started.copy_(is_finite)
        self._waits = not (torch.compiler.is_compiling() or bool(is_finite))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: object) -> None:
        if self.variance == "shared" and f"{prefix}logvar" in state_dict:
            # Weights from before there was ``started`` had.
            state_dict.setdefault(f"{prefix}started", torch.ones_like(self.started))
            self._waits = not bool(state_dict[f"{prefix}started"])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _mean_logvar(self, params: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        parts = self._split(params, x)
        if self.variance == "fixed":
            return parts[0], self.logvar
        above = (parts[1] if self.variance == "learned" else self.logvar) - self.min_logvar
        return parts[0], self.min_logvar + F.softplus(above)

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        dtype = compute_dtype(params)
        params = params.to(dtype)
        square = (as_probability(x, dtype) - self._split(params, x)[0]).square()
        if self._waits and self.training and torch.is_grad_enabled() and not _is_transformed():
            self._start(square.detach())
        logvar = self._mean_logvar(params)[1].to(dtype)
        terms = square * torch.exp(-logvar) + logvar + math.log(2.0 * math.pi)
        return reduce(0.5 * terms, reduction)

    def mean(self, params: Tensor) -> Tensor:
        return self._split(params)[0]

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        mean, logvar = self._mean_logvar(params)
        eps = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + torch.exp(0.5 * logvar) * eps


def _is_transformed() -> bool:
    """Whether torch.func or torch.export is at work, under which nothing is to be kept."""
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting()


class Laplace(Likelihood):
    """-log p = |x - m| / b + log(2 b), in nats, a density in x; the scale b is fixed."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        (mean,) = self._split(params, x)
        dtype = compute_dtype(params)
        difference = as_probability(x, dtype) - mean.to(dtype)
        return reduce(difference.abs() / self.scale + math.log(2.0 * self.scale), reduction)

    def mean(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        dtype = compute_dtype(params)  # of fewer digits, 1 in 256 uniform numbers may be 0
        u = torch.rand(params.shape, generator=generator, device=params.device, dtype=dtype)
        u = u.clamp_min(0.25 * torch.finfo(dtype).eps) - 0.5  # else 0, at infinity
        noise = -self.scale * torch.sign(u) * torch.log1p(-2.0 * u.abs())
        return params + noise.to(params.dtype)


class Categorical(Likelihood):
    """-log p = logsumexp(l) - l_x, in nats, over ``num_classes`` values 0, 1, ... of each element.

    x holds class indices (any integer dtype, uint8 included: 256 classes model 8-bit pixels).
    ``mean`` is the most probable class, as int64: classes have no average.
    """

    discrete = True

    def __init__(self, num_classes: int = 256) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.parameters_per_element = num_classes

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        if x.is_floating_point():
            raise TypeError(f"the categorical likelihood needs integer classes, x is {x.dtype}")
        self._split(params, x)
        logits = self._by_class(params).to(compute_dtype(params))
        return reduce(F.cross_entropy(logits, x.long(), reduction="none"), reduction)

    def mean(self, params: Tensor) -> Tensor:
        return self._by_class(params).argmax(1)

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        probabilities = self._by_class(params).softmax(1).movedim(1, -1)
        flat = probabilities.reshape(-1, self.parameters_per_element)
        return torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1])

    def _by_class(self, params: Tensor) -> Tensor:
        """(N, P * C, ...) to (N, P, C, ...)."""
        return params.unflatten(1, (self.parameters_per_element, -1))


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "laplace": Laplace,
    "categorical": Categorical,
}


def make_likelihood(name: str | Likelihood, **options: object) -> Likelihood:
    """A likelihood by name, with its options, or the given one itself."""
    if isinstance(name, Likelihood):
        if options:
            raise ValueError("likelihood_options go with a likelihood's name, not with an object")
        return name
    if name not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {name!r}; known: {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name](**options)
