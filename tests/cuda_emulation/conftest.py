from __future__ import annotations

import pytest

from tests.cuda_emulation import emulator


@pytest.fixture(scope="session")
def emulation() -> emulator.Emulator:
    if emulator.compiler() is None:
        pytest.skip("no C++ compiler: the CUDA kernels can't be emulated")
    return emulator.Emulator()
