"""Likelihoods of levels, counts and classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.likelihoods import SPECS
from vae_fast.models.likelihoods.common import OfSpec
from vae_fast.reference import compute_dtype


class DiscretizedLogistic(OfSpec):
    """A logistic distribution over 256 levels (Salimans et al. 2017, section 2.1).

    The decoder gives (loc, log s) of each element, where loc in [-1, 1] corresponds to x in [0, 1].
    ``mean`` and ``sample`` are in [0, 1]."""

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
    (Salimans et al. 2017). The decoder gives (10 K, H, W) for images (3, H, W)."""

    spec = SPECS["discretized_logistic_mixture"]

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        check_count("components", components)
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
    """Counts: -log p = rate - x log rate + log x!, in nats; the decoder gives log rate."""

    spec = SPECS["poisson_log"]
    discrete = True


class NegativeBinomial(OfSpec):
    """Counts with variance rate + rate^2 / dispersion, as in scvi-tools (Lopez et al. 2018); the
    decoder gives log rate.

    Args:
        shape: a sample's shape, (C, ...).
        dispersion: "per_feature" learns one per element of vectors (D,) or per channel of images,
            "shared" learns one for all, and "per_element" makes the decoder give its logarithm,
            after the log rate.
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
        self.dispersion = dispersion
        self.parameters_per_element = len(self.spec.params) - (dispersion != "per_element")
        if dispersion == "per_feature":
            if shape is None:
                raise ValueError("a dispersion per feature needs the data's shape, shape=(C, ...)")
            self.log_dispersion = nn.Parameter(torch.zeros(shape[0], *[1] * (len(shape) - 1)))
        elif dispersion == "shared":
            self.log_dispersion = nn.Parameter(torch.zeros(()))

    def given(self, params: Tensor) -> list[Tensor | float]:
        log_rate, *rest = self._split(params)
        log_dispersion = rest.pop(0) if self.dispersion == "per_element" else self.log_dispersion
        return [log_rate, torch.exp(log_dispersion), *rest]


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """0 with probability sigmoid(l), else the negative binomial; the decoder gives l last.

    For gene counts, most of which are 0 (Lopez et al. 2018, scVI).
    """

    spec = SPECS["zero_inflated_negative_binomial_log"]


class Categorical(OfSpec):
    """-log p = logsumexp(l) - l_x, in nats, over ``num_classes`` values 0, 1, ... of each element.

    x holds class indices in any integer dtype; 256 classes model 8-bit pixels. Classes have no
    average, so ``mean`` is the most probable class, int64.
    """

    spec = SPECS["categorical"]
    discrete = True

    def __init__(self, num_classes: int = 256) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.parameters_per_element = num_classes

    def given(self, params: Tensor) -> list[Tensor | float]:
        return [params.unflatten(1, (self.parameters_per_element, -1))]  # (N, P, C, ...)

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        if x.is_floating_point():
            raise TypeError(f"the categorical likelihood needs integer classes, x is {x.dtype}")
        return x.to(torch.uint8) if x.dtype == torch.bool else x
