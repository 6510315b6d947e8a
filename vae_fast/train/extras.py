"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, purpose: str, extra: str = "train") -> ModuleType:
    """Import ``module``, or say in one sentence what it is for and how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"yaml": "pyyaml", "PIL": "pillow"}.get(module, module).split(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: pip install 'vae_fast[{extra}]'",
            name=error.name,
        ) from None
