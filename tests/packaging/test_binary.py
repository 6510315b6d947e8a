"""What the built libraries depend on: LibTorch's stable ABI and nothing else of torch."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

LIBRARIES = ["_C", "_C_cuda"]


@pytest.fixture(params=LIBRARIES)
def library(request):
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("binutils are not installed")
    spec = importlib.util.find_spec(f"vae_fast.{request.param}")
    if spec is None:
        pytest.skip(f"vae_fast.{request.param} is not built")
    return spec.origin


def lines(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_no_symbol_of_torch_beyond_the_stable_abi(library):
    undefined = [line.split()[-1] for line in lines("nm", "-D", "--undefined-only", library)]
    assert any(name.startswith("aoti_torch_") for name in undefined), "does it use torch at all?"
    # Mangled C++ names of torch's namespaces: at::, c10::, caffe2::, torch::.
    unstable = [name for name in undefined if re.match(r"_ZN?K?(2at|3c10|6caffe2|5torch)", name)]
    assert unstable == []


def test_no_unneeded_library_is_linked(library):
    needed = re.findall(r"NEEDED.*\[(.+?)\.so", "\n".join(lines("readelf", "-d", library)))
    allowed = {"libtorch_cpu", "libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64"}
    if "_C_cuda" in library:
        allowed |= {"libtorch_cuda", "libcudart"}
    assert set(needed) <= allowed | {name for name in needed if name.startswith("ld-linux")}
    assert "libc10" not in needed and "libtorch_python" not in needed


def test_no_path_of_the_building_machine(library):
    # Neither a run path nor a torch header that names itself in an error.
    assert b"site-packages" not in Path(library).read_bytes()
    assert not re.search(r"\((RPATH|RUNPATH)\)", "\n".join(lines("readelf", "-d", library)))
