"""Optional packages, imported where they are used."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType


def need(module: str, purpose: str, install: str = "'vae_fast[train]'") -> ModuleType:
    """Import ``module``. If it is missing, the error says what it is for and how to install it."""
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
    """Import matplotlib with any MPLBACKEND: a notebook's value may be unknown here, which raises.

    A known value takes effect afterwards.
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
    """Check for all packages that a run needs, so that it does not fail at its end."""
    need("yaml", "writing a run's config.yaml")
    need("safetensors.torch", "writing checkpoints")
    need("matplotlib", "drawing curves.png")
    need("PIL", "drawing pictures")
