"""Likelihoods p(x | z): the distribution that a decoder's output parametrises.

They have the names and formulas of ``vae_fast.likelihoods``, and split the parameters into those
from the decoder and those learned once. For data of shape (C, ...) a decoder gives (P * C, ...):
``parameters_per_element`` (P) parameters per element, stacked along the first dimension. ``nll`` is
in nats; ``mean`` is E[x | z] on the data's own scale.

``target`` is the kind of data. "unit" and "real": uint8 stands for x / 255 and bool for {0, 1}.
"level": the same, with floating-point data in [0, 1] rounded to one of 256 levels. "count": 0, 1,
2, ... in any dtype. "category": class indices.

Densities (Gaussian, Laplace) and probabilities (Bernoulli, categorical) are not comparable;
``discrete`` marks the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vae_fast.likelihoods import SPECS
from vae_fast.models.likelihoods.common import Likelihood, OfSpec
from vae_fast.models.likelihoods.counts import (
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from vae_fast.models.likelihoods.standardized import Standardized
from vae_fast.models.likelihoods.values import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    Laplace,
    StudentT,
)

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "OfSpec",
    "Poisson",
    "Standardized",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "make_likelihood",
]


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
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
# A likelihood of the list without a class here is an OfSpec.
for _spec in SPECS.values():
    if not _spec.planes:
        LIKELIHOODS.setdefault(_spec.family, partial(OfSpec, _spec))


def make_likelihood(
    name: str | Likelihood,
    shape: Sequence[int] | None = None,
    *,
    standardize: bool = False,
    **options: Any,
) -> Likelihood:
    """A likelihood by name, with its options, or the given one; ``shape`` is a sample's.

    ``standardize`` wraps it in ``Standardized``.
    """
    if standardize:
        return Standardized(make_likelihood(name, shape, **options), shape)
    if isinstance(name, Likelihood):
        if options:
            raise ValueError("likelihood_options go with a likelihood's name, not with an object")
        return name
    if name not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {name!r}; known: {', '.join(LIKELIHOODS)}")
    if getattr(LIKELIHOODS[name], "takes_shape", False):
        options.setdefault("shape", shape)
    return LIKELIHOODS[name](**options)
