"""Run a library's own tests with a patch: ``pytest -p vae_fast.patches.plugin --vae-fast scvi``."""

from __future__ import annotations

import pytest

from vae_fast.patches.core import LIBRARIES, NOISES, Patch, patch

_patches: list[Patch] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vae_fast")
    group.addoption("--vae-fast", action="append", default=[], choices=LIBRARIES, metavar="LIBRARY",
                    help="apply vae_fast.patch to this library for all tests")  # fmt: skip
    group.addoption("--vae-fast-noise", default="torch", choices=NOISES,
                    help="whose noise it draws (default: torch)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    noise = config.getoption("--vae-fast-noise")
    _patches.extend(patch(name, noise=noise) for name in config.getoption("--vae-fast"))


def pytest_report_header() -> list[str]:
    return [line for p in _patches for line in str(p).splitlines()]


def pytest_unconfigure() -> None:
    while _patches:
        _patches.pop().undo()
