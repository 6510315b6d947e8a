"""A project as small as it can be that the real setup.py builds: one CPU op, one CUDA source.

It stands in for csrc, so that what is tested is the build and not the kernels, in seconds.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
int64_t elements(torch::stable::Tensor x) { return x.numel(); }
STABLE_TORCH_LIBRARY(vae_fast_probe, m) { m.def("elements(Tensor x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(vae_fast_probe, CPU, m) { m.impl("elements", TORCH_BOX(&elements)); }
"""
MODULE = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(_C, m) { m.attr("torch") = VAE_FAST_BUILD_TORCH; }
"""


@pytest.fixture(scope="session")
def setup_py():
    """setup.py as a module; its main() does not run."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("setup.py is not here: these tests run in the source tree")
    spec = importlib.util.spec_from_file_location("vae_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Project:
    """A copy of the build around tiny sources."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("setup.py", "pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, path / name)
        for folder in ("csrc/cuda", "csrc/cpu", "vae_fast/data"):
            (path / folder).mkdir(parents=True)
        (path / "README.md").write_text("A stand-in.\n")
        (path / "vae_fast" / "__init__.py").write_text('__version__ = "0.0"\n')
        (path / "csrc" / "library.cpp").write_text(LIBRARY)
        (path / "csrc" / "module.cpp").write_text(MODULE)

    COMMAND = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")

    def environment(self, **variables: str) -> dict[str, str]:
        """The caller's environment without its choices about the build, and with these."""
        drop = {"VAE_FAST_BUILD", "CUDA_HOME", "CUDA_PATH", "CXX", "CC", "TORCH_CUDA_ARCH_LIST"}
        return {k: v for k, v in os.environ.items() if k not in drop} | variables

    def build(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Build in place, and return what was said."""
        return subprocess.run(
            self.COMMAND,
            check=False,
            cwd=self.path,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def libraries(self) -> list[str]:
        return sorted(path.name.split(".")[0] for path in (self.path / "vae_fast").glob("*.so"))

    def load(self) -> str:
        """Import the built library in a fresh process, call its op, and return what it says."""
        code = (
            "import torch; from vae_fast import _C; "
            "assert torch.ops.vae_fast_probe.elements(torch.ones(2, 3)) == 6; print(_C.torch)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def project(tmp_path, setup_py):
    return Project(tmp_path)


@pytest.fixture
def needs_compiler(setup_py):
    if reason := setup_py.missing_for_cpu():
        pytest.skip(reason)
