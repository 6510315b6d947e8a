"""The emulator with nvcc's code in it, and the ways in which it may run."""

from __future__ import annotations

from pathlib import Path

from tests.cuda_emulation import emulator
from tests.ptx.build import FIND, Kernels


class PtxEmulator(emulator.Emulator):
    """``ways``: "lockstep", all warps come to each access together, or else each lane runs as far as
    it can; "worst", approximate instructions are as wrong as the ISA allows."""

    def __init__(self, built: tuple[Path, Kernels], ways: list[str] | tuple[str, ...] = ()) -> None:
        library, self.kernels = built
        if unknown := set(ways) - {"lockstep", "worst"}:
            raise ValueError(f"no such way to run PTX: {', '.join(sorted(unknown))}")
        super().__init__(library)
        self._find = FIND(self.kernels.find)  # kept from being collected
        self.lib.ptx_kernels(self._find)
        self.lib.emulation_lockstep(int("lockstep" in ways))
        self.lib.ptx_worst(int("worst" in ways))

    def finish(self, code: int, workspace: int | None = None) -> None:
        assert not self.kernels.errors, self.kernels.errors[0]
        super().finish(code, workspace)
