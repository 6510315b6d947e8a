"""Likelihoods p(x | z): what a decoder's output means.

They are the list of ``vae_fast.likelihoods`` by the same names, with what a model adds: which
parameters the decoder gives, and which are learned once. A decoder gives ``parameters_per_element``
(P) parameters for each element of x: for data of shape (C, ...) that is (P * C, ...), the parameters
stacked along the first dimension. ``nll`` is in nats, ``mean`` is E[x | z] on the data's own scale.

``target`` says what data are: of "unit" and "real" likelihoods uint8 stand for x / 255 and bool for
{0, 1}; of "level" ones too, and floating-point data in [0, 1] are rounded to one of 256 levels. "count"
data are 0, 1, 2, ... in any dtype, and "category" data class numbers.

Densities (Gaussian, Laplace) and probabilities (Bernoulli, categorical) are not comparable;
``discrete`` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import bce_kl_loss, bernoulli_nll_samples, elbo, gaussian_kl, nll
from vae_fast.likelihoods import SPECS, Spec
from vae_fast.models.joined import joined_mean
from vae_fast.reference import as_probability, compute_dtype
from vae_fast.types import LossOutput, Reduction


class Likelihood(nn.Module):
    """What every p(x | z) offers; a new one implements ``nll`` and ``mean``."""

    parameters_per_element: int = 1
    discrete: bool = False
    target: str = "real"
    """What data are: "unit", "real", "count", "level" or "category", as in ``vae_fast.likelihoods``."""

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


class OfSpec(Likelihood):
    """A likelihood of ``vae_fast.likelihoods.SPECS``, all of whose parameters the decoder gives."""

    spec: Spec

    def __init__(self, spec: Spec | None = None) -> None:
        super().__init__()
        if spec is not None:
            self.spec = spec
            self.discrete = spec.target in ("count", "level", "category")
            self.parameters_per_element = len(spec.params)
        self.target = self.spec.target

    def given(self, params: Tensor) -> list[Tensor | float]:
        """The spec's parameters, from what the decoder gives: each by itself, or all stacked."""
        return [params]

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        """x as the spec wants it."""
        if x.is_floating_point() or x.dtype in (torch.uint8, torch.bool):
            return x
        return x if self.target == "count" else x.to(compute_dtype(params))

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        self._check(params, x)
        x = self.data(x, params)  # before the parameters, which may begin with the first batch
        return nll(self.spec, self.given(params), x, reduction=reduction)

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
        self._check(params, x)
        x, given = self.data(x, params), self.given(params)
        return elbo(self.spec, given, x, mu, logvar, beta=beta, reduction=reduction)

    def mean(self, params: Tensor) -> Tensor:
        return self.spec.mean(*self._each(params))

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.spec.sample(*self._each(params), generator=generator)

    def _each(self, params: Tensor) -> list[Tensor]:
        """Each parameter as a tensor of the decoder's dtype or a wider one."""
        given = self.given(params)
        if len(given) < len(self.spec.params):
            given = given[0].chunk(len(self.spec.params), dim=1)
        return [torch.as_tensor(p, device=params.device) for p in given]

    def _check(self, params: Tensor, x: Tensor) -> None:
        self._split(params, x)


class Bernoulli(OfSpec):
    """-log p = softplus(l) - x l, with logits l; x in [0, 1] (Kingma & Welling 2014, appendix C).

    In nats. For grey values strictly between 0 and 1 this is the customary cross-entropy, not a
    normalised likelihood (Loaiza-Ganem & Cunningham 2019): compare it only with itself.
    """

    spec = SPECS["bernoulli"]
    discrete = True

    def _check(self, params: Tensor, x: Tensor) -> None:
        """The op says what does not fit."""

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


class ContinuousBernoulli(OfSpec):
    """-log p = softplus(l) - x l - log C(l), with logits l: a density of grey values x in [0, 1]
    (Loaiza-Ganem & Cunningham 2019), in nats."""

    spec = SPECS["continuous_bernoulli"]


_LEAST = 0.1  # above its floor, where a log-variance may start: below, it has hardly a gradient


class Gaussian(OfSpec):
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

    def given(self, params: Tensor) -> list[Tensor | float]:
        mean, logvar = self._mean_logvar(params)
        return [mean, 0.5 * logvar]

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        if self._waits and self.training and torch.is_grad_enabled() and not _is_transformed():
            dtype = compute_dtype(params)
            error = as_probability(x, dtype) - self._split(params)[0].to(dtype)
            self._start(error.detach().square())
        return super().data(x, params)


def _is_transformed() -> bool:
    """Whether torch.func or torch.export is at work, under which nothing is to be kept."""
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

    ``df`` are the degrees of freedom, one number. A log s stays above ``min_log_scale``, softly, as
    the Gaussian's learned log-variance does, and for its reason.
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


class DiscretizedLogistic(OfSpec):
    """Probabilities of 256 levels (Salimans et al. 2017, section 2.1); the decoder gives (loc, log s)
    of each element, loc in [-1, 1] for [0, 1]. ``mean`` and ``sample`` are in [0, 1]."""

    spec = SPECS["discretized_logistic"]
    parameters_per_element = 2
    discrete = True

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return x
        return (255.0 * x.to(compute_dtype(params))).round()

    def mean(self, params: Tensor) -> Tensor:
        return super().mean(params) / 255.0

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return super().sample(params, generator=generator) / 255.0


class DiscretizedLogisticMixture(DiscretizedLogistic):
    """A mixture of ``components`` (K) discretized logistics over the three channels of a pixel
    (Salimans et al. 2017): of images (3, H, W) the decoder gives (10 K, H, W)."""

    spec = SPECS["discretized_logistic_mixture"]

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components

    def parameters_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(
                "a discretized_logistic_mixture is of colour images (3, H, W), and the data are "
                f"{tuple(shape)}: discretized_logistic takes any shape"
            )
        return (10 * self.components, *shape[1:])

    def _check(self, params: Tensor, x: Tensor) -> None:
        wanted = (x.shape[0], *self.parameters_shape(x.shape[1:]))
        if tuple(params.shape) != wanted:
            raise ValueError(
                f"for x of shape {tuple(x.shape)} and {self.components} components the decoder must "
                f"give {wanted}, not {tuple(params.shape)}"
            )


class Poisson(OfSpec):
    """Counts, -log p = rate - x log rate + log x!; the decoder gives log rate."""

    spec = SPECS["poisson_log"]
    discrete = True


class NegativeBinomial(OfSpec):
    """Counts whose variance is rate + rate^2 / dispersion, as scvi-tools has them (Lopez et al. 2018);
    the decoder gives log rate.

    Args:
        shape: of a sample, (C, ...).
        dispersion: "per_feature" learns one for each gene of vectors (D,), or for each channel of
            images; "shared" one for all; "per_element" has the decoder give its logarithm, after the
            log rate.
    """

    spec = SPECS["negative_binomial_log"]
    discrete = True
    takes_shape = True

    def __init__(self, shape: Sequence[int] | None = None, dispersion: str = "per_feature") -> None:
        super().__init__()
        if dispersion not in ("per_feature", "shared", "per_element"):
            raise ValueError(
                f"dispersion must be per_feature, shared or per_element, got {dispersion!r}"
            )
        if dispersion == "per_feature" and shape is None:
            raise ValueError("a dispersion per feature needs the data's shape, shape=(C, ...)")
        self.dispersion = dispersion
        self.parameters_per_element = len(self.spec.params) - (dispersion != "per_element")
        if dispersion == "per_feature":
            self.log_dispersion = nn.Parameter(torch.zeros(shape[0], *[1] * (len(shape) - 1)))
        elif dispersion == "shared":
            self.log_dispersion = nn.Parameter(torch.zeros(()))

    def given(self, params: Tensor) -> list[Tensor | float]:
        log_rate, *rest = self._split(params)
        log_dispersion = rest.pop(0) if self.dispersion == "per_element" else self.log_dispersion
        return [log_rate, torch.exp(log_dispersion), *rest]


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The negative binomial, or 0 with the probability sigmoid(l); the decoder gives l as well, last.

    For genes' counts, most of which are 0 (Lopez et al. 2018, scVI).
    """

    spec = SPECS["zero_inflated_negative_binomial_log"]


class Categorical(OfSpec):
    """-log p = logsumexp(l) - l_x, in nats, over ``num_classes`` values 0, 1, ... of each element.

    x holds class indices (any integer dtype, uint8 included: 256 classes model 8-bit pixels).
    ``mean`` is the most probable class, as int64: classes have no average.
    """

    spec = SPECS["categorical"]
    discrete = True

    def __init__(self, num_classes: int = 256) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.parameters_per_element = num_classes

    def given(self, params: Tensor) -> list[Tensor | float]:
        return [self._by_class(params)]

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        if x.is_floating_point():
            raise TypeError(f"the categorical likelihood needs integer classes, x is {x.dtype}")
        return x.to(torch.uint8) if x.dtype == torch.bool else x

    def _by_class(self, params: Tensor) -> Tensor:
        """(N, P * C, ...) to (N, P, C, ...)."""
        return params.unflatten(1, (self.parameters_per_element, -1))


def _by_name() -> dict[str, Callable[..., Likelihood]]:
    classes = {
        "bernoulli": Bernoulli,
        "continuous_bernoulli": ContinuousBernoulli,
        "gaussian": Gaussian,
        "laplace": Laplace,
        "student_t": StudentT,
        "discretized_logistic": DiscretizedLogistic,
        "discretized_logistic_mixture": DiscretizedLogisticMixture,
        "poisson": Poisson,
        "negative_binomial": NegativeBinomial,
        "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
        "categorical": Categorical,
    }
    # What is new on the list needs no class to be had by its name.
    for spec in SPECS.values():
        if not spec.planes:
            classes.setdefault(spec.family, partial(OfSpec, spec))
    return classes


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = _by_name()


def make_likelihood(
    name: str | Likelihood, shape: Sequence[int] | None = None, **options: object
) -> Likelihood:
    """A likelihood by name, with its options, or the given one itself; ``shape`` is a sample's."""
    if isinstance(name, Likelihood):
        if options:
            raise ValueError("likelihood_options go with a likelihood's name, not with an object")
        return name
    if name not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {name!r}; known: {', '.join(LIKELIHOODS)}")
    if getattr(LIKELIHOODS[name], "takes_shape", False):
        options.setdefault("shape", shape)
    return LIKELIHOODS[name](**options)
