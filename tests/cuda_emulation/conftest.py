from __future__ import annotations

import fcntl
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
        return emulator.Emulator()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: torch's threads would only spin while the emulation runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
