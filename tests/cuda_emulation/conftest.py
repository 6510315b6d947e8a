from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
import torch

from tests.cuda_emulation import emulator


@pytest.fixture(scope="session")
def emulation() -> emulator.Emulator:
    if emulator.compiler() is None:
        pytest.skip("no C++ compiler: the CUDA kernels can't be emulated")
    if not emulator.CSRC.is_dir():
        pytest.skip("csrc is not here: these tests run in the source tree")
    folder = emulator.ROOT / "build"
    folder.mkdir(exist_ok=True)
    with open(folder / "cuda_emulation.lock", "w") as lock:  # test processes compile it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        choice = os.environ.get("VAE_FAST_PTX")
        return of_ptx(choice) if choice else emulator.Emulator()


def of_ptx(choice: str) -> emulator.Emulator:
    """Kernels as nvcc compiled them. ``choice`` (VAE_FAST_PTX): "sm_90", or "sm_90,lockstep"."""
    from tests.ptx import build, machine

    arch, *ways = choice.split(",")
    return machine.PtxEmulator(build.library(arch), ways)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: torch's threads would only spin while the emulation runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
