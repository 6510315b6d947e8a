"""Likelihoods p(x | z) by name: what a fused loss computes, and the same in plain PyTorch.

One file per family; ``SPECS`` is the one list, in the order of csrc/likelihoods/list.h.
"""

from __future__ import annotations

from vae_fast.likelihoods import gaussian, laplace
from vae_fast.likelihoods.spec import Spec

_FAMILIES = (gaussian, laplace)

SPECS: dict[str, Spec] = {spec.name: spec for family in _FAMILIES for spec in family.SPECS}

__all__ = ["SPECS", "Spec"]
