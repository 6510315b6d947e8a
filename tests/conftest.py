"""Fixtures of all tests: backends, devices, SIMD levels, and a fixed seed."""

from __future__ import annotations

import os

import pytest
import torch

import vae_fast
from vae_fast.backend import library, native_reason

NATIVE = native_reason("cpu") is None
LEVELS = tuple(library().cpu_capabilities()) if NATIVE else ()
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def pytest_configure(config: pytest.Config) -> None:
    """Test processes side by side (pytest -n) share the cores."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", CUDA])
def device(request) -> str:
    return _device(request.param)


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    """Each backend in turn, set for the test."""
    if request.param == "native" and not NATIVE:
        pytest.skip(native_reason("cpu"))
    with vae_fast.set_backend(request.param):
        yield request.param


@pytest.fixture
def native() -> None:
    """The native backend, set for the test."""
    if not NATIVE:
        pytest.skip(native_reason("cpu"))
    with vae_fast.set_backend("native"):
        yield


@pytest.fixture(params=LEVELS or ("not built",))
def cpu_level(request, native) -> str:
    """Each SIMD level that this machine runs in turn, on the native backend."""
    with level(request.param):
        yield request.param


@pytest.fixture(params=["reference", *LEVELS, CUDA])
def implementation(request) -> str:
    """Everything that computes an op: plain PyTorch, each SIMD level, CUDA. Yields the device."""
    if request.param in LEVELS:
        with vae_fast.set_backend("native"), level(request.param):
            yield "cpu"
    elif request.param == "cuda":
        with vae_fast.set_backend("native"):
            yield _device("cuda")
    else:
        with vae_fast.set_backend("reference"):
            yield "cpu"


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class level:
    """A SIMD level for a ``with`` block."""

    def __init__(self, name: str) -> None:
        self._name, self._before = name, library().cpu_capability()

    def __enter__(self) -> None:
        library().set_cpu_capability(self._name)

    def __exit__(self, *exc: object) -> None:
        library().set_cpu_capability(self._before)


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return name
