"""Likelihoods p(x | z) by name: what a fused loss computes, and the same in plain PyTorch.

One module per family, found by being here and having ``SPECS``. As csrc/likelihoods/list.h is the
kernels', ``SPECS`` is Python's one list.
"""

from __future__ import annotations

import importlib
import pkgutil

from vae_fast.likelihoods.spec import Spec

SPECS: dict[str, Spec] = {
    spec.name: spec
    for module in pkgutil.iter_modules(__path__)
    for spec in getattr(importlib.import_module(f"{__name__}.{module.name}"), "SPECS", ())
}

__all__ = ["SPECS", "Spec"]
