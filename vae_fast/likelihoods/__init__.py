"""Likelihoods p(x | z) by name: what a fused loss computes, and the same in plain PyTorch.

One file per family; ``SPECS`` is the one list, as csrc/likelihoods/list.h is the kernels'.
"""

from __future__ import annotations

from vae_fast.likelihoods import (
    bernoulli,
    categorical,
    continuous_bernoulli,
    discretized_logistic,
    gaussian,
    laplace,
    negative_binomial,
    poisson,
    student_t,
)
from vae_fast.likelihoods.spec import Spec

_FAMILIES = (
    bernoulli,
    continuous_bernoulli,
    gaussian,
    laplace,
    student_t,
    discretized_logistic,
    poisson,
    negative_binomial,
    categorical,
)

SPECS: dict[str, Spec] = {spec.name: spec for family in _FAMILIES for spec in family.SPECS}

__all__ = ["SPECS", "Spec"]
