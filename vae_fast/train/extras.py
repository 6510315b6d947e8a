"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, purpose: str, install: str = "'vae_fast[train]'") -> ModuleType:
    """Import ``module``, or say in one sentence what it is for and what pip has to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"yaml": "pyyaml", "PIL": "pillow"}.get(module, module).split(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: pip install {install}",
            name=error.name,
        ) from None


def check_extras() -> None:
    """Look for all that a run needs: it must not fail at its end for want of a library."""
    need("yaml", "writing a run's config.yaml")
    need("safetensors.torch", "writing checkpoints")
    need("matplotlib", "drawing curves.png")
    need("PIL", "drawing pictures")
