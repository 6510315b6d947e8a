"""Likelihoods p(x | z) by name: the formulas of the fused losses, in plain PyTorch.

Each module with ``SPECS`` defines one family. The package's ``SPECS`` joins them and corresponds to
the kernels' list, csrc/likelihoods/list.h.
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
