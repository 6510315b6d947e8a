"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType


def need(module: str, purpose: str, install: str = "'vae_fast[train]'") -> ModuleType:
    """Import ``module``, or say in one sentence what it is for and what pip has to install."""
    try:
        with _without_backend(module):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = {"yaml": "pyyaml", "PIL": "pillow"}.get(module, module).split(".")[0]
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: pip install {install}",
            name=error.name,
        ) from None


@contextmanager
def _without_backend(module: str) -> Iterator[None]:
    """Import matplotlib whatever MPLBACKEND says: a notebook's may be unknown here, which raises.

    Where it is known, it is in force afterwards.
    """
    backend = os.environ.get("MPLBACKEND")
    if backend is None or module.split(".")[0] != "matplotlib" or "matplotlib" in sys.modules:
        yield
        return
    del os.environ["MPLBACKEND"]
    try:
        yield
    finally:
        os.environ["MPLBACKEND"] = backend
        if "matplotlib" in sys.modules:
            with suppress(ValueError):
                sys.modules["matplotlib"].rcParams["backend"] = backend


def check_extras() -> None:
    """Look for all that a run needs: it must not fail at its end for want of a library."""
    need("yaml", "writing a run's config.yaml")
    need("safetensors.torch", "writing checkpoints")
    need("matplotlib", "drawing curves.png")
    need("PIL", "drawing pictures")
