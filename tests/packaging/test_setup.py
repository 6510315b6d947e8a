"""What setup.py decides to build, and the sentence it says where it can't."""

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_toolkit(home, version="13.0", archs=("75", "80", "90")):
    """A CUDA toolkit as far as setup.py looks: headers, and an nvcc that answers its questions."""
    (home / "include").mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").write_text("")
    listed = "; ".join(f"echo compute_{arch}" for arch in archs)
    write_script(
        home / "bin" / "nvcc",
        f'case "$1" in\n'
        f"--version) echo 'Cuda compilation tools, release {version}, V{version}.1' ;;\n"
        f"--list-gpu-arch) {listed} ;;\n"
        f"--dryrun) echo '#$ _SPACE_= ' >&2; echo '#$ TOP={home}/bin/..' >&2 ;;\n"
        f"esac",
    )
    return home


# --- VAE_FAST_BUILD -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "choice"),
    [({}, "auto"), ({"VAE_FAST_BUILD": ""}, "auto"), ({"VAE_FAST_BUILD": "CPU"}, "cpu")],
)
def test_build_choice(setup_py, environ, choice):
    assert setup_py.build_choice(environ) == choice


def test_unknown_choice_lists_those_there_are(project):
    result = project.build(VAE_FAST_BUILD="gpu")
    assert result.returncode != 0
    assert result.stderr.strip() == (
        "vae_fast: VAE_FAST_BUILD='gpu' is not one of auto, cpu, cuda, off; "
        "set it to one of these or leave it unset."
    )


@pytest.mark.parametrize(
    ("name", "flag"), [("thread", "-fsanitize=thread"), ("coverage", "--coverage")]
)
def test_an_instrumented_build_has_its_flags_and_its_own_folder(setup_py, monkeypatch, name, flag):
    monkeypatch.setenv("VAE_FAST_INSTRUMENT", name)
    assert flag in setup_py.cxx_flags() and "-O3" not in setup_py.cxx_flags()
    assert flag in setup_py.cpu_extension().extra_link_args
    command = setup_py.build_command()(setup_py.setup(script_args=["--name"]))
    command.inplace = True
    command.finalize_options()
    assert not command.inplace
    assert command.build_lib == str(setup_py.ROOT / "build" / "instrumented" / name)
    monkeypatch.setattr(setup_py, "missing_for_cpu", lambda: None)
    assert len(setup_py.plan()) == (2 if name == "coverage" else 1)
    monkeypatch.delenv("VAE_FAST_INSTRUMENT")
    assert flag not in setup_py.cxx_flags() + setup_py.cpu_extension().extra_link_args
    with pytest.raises(
        setup_py.BuildError, match="'memory' is not one of address, thread, coverage"
    ):
        setup_py.instrument({"VAE_FAST_INSTRUMENT": "memory"})


def test_an_editable_package_is_a_path(project):
    """By setup.py and not by a flag of pip's: pip before 23.1 has no -C."""
    (project.path / "vae_fast" / "data" / "x.LICENSE.txt").write_text("x")
    code = "from setuptools import build_meta; print(build_meta.build_editable('out'))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=False, cwd=project.path,
        env=project.environment(VAE_FAST_BUILD="off"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (project.path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        (path,) = (name for name in file.namelist() if name.endswith(".pth"))
        assert file.read(path).decode().strip() == str(project.path)


def test_off_builds_nothing(project):
    result = project.build(VAE_FAST_BUILD="off")
    assert result.returncode == 0, result.stderr
    assert project.libraries() == []


def test_auto_without_compiler_says_so_and_goes_on(project):
    result = project.build(CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    assert project.libraries() == []
    said = [line for line in result.stderr.splitlines() if line.startswith("vae_fast:")]
    assert len(said) == 1, result.stderr
    assert "'no-such-compiler' is not on PATH" in said[0] and "reference backend" in said[0]


@pytest.mark.parametrize("choice", ["cpu", "cuda"])
def test_explicit_choice_without_compiler_stops(project, choice):
    result = project.build(VAE_FAST_BUILD=choice, CXX="no-such-compiler")
    assert result.returncode != 0
    (sentence,) = result.stderr.strip().splitlines()
    assert sentence.startswith(f"vae_fast: VAE_FAST_BUILD={choice} can't be done, because no C++")


def test_compiler_that_fails_is_no_compiler(project, tmp_path):
    broken = write_script(tmp_path / "bin" / "broken-c++", "echo 'error: too old' >&2; exit 1")
    result = project.build(VAE_FAST_BUILD="cpu", CXX=str(broken))
    assert result.returncode != 0
    assert "can't build a C++20 library: error: too old" in result.stderr
    assert "Traceback" not in result.stderr


# --- the CUDA toolkit -----------------------------------------------------------------------------


def test_toolkit_behind_plain_nvcc(setup_py, tmp_path):
    home = make_toolkit(tmp_path / "cuda", version="12.9")
    toolkit = setup_py.find_cuda_toolkit({"PATH": str(home / "bin")})
    assert toolkit.home == home
    assert toolkit.version == (12, 9)
    assert toolkit.archs == ("7.5", "8.0", "9.0")


def test_toolkit_behind_link(setup_py, tmp_path):
    home = make_toolkit(tmp_path / "cuda-13.0")
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "usr" / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    assert setup_py.find_cuda_toolkit({"PATH": str(tmp_path / "usr/bin")}).home == home


def test_toolkit_behind_wrapper_script(setup_py, tmp_path):
    home = make_toolkit(tmp_path / "cuda-13.0")
    wrapper = write_script(tmp_path / "usr" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    # Where torch would guess: an nvcc in bin, and no headers beside it.
    assert not setup_py.is_cuda_home(wrapper.parent.parent)
    path = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    assert setup_py.find_cuda_toolkit({"PATH": path}).home == home


def test_cuda_home_wins_over_path(setup_py, tmp_path):
    chosen = make_toolkit(tmp_path / "chosen", version="13.2")
    other = make_toolkit(tmp_path / "other", version="12.4")
    environ = {"CUDA_HOME": str(chosen), "PATH": str(other / "bin")}
    assert setup_py.find_cuda_toolkit(environ).version == (13, 2)


def test_cuda_home_that_is_none_is_an_error(setup_py, tmp_path):
    with pytest.raises(setup_py.BuildError, match=f"CUDA_HOME={tmp_path} is no CUDA toolkit"):
        setup_py.find_cuda_toolkit({"CUDA_HOME": str(tmp_path)})


def test_other_major_version_names_both(setup_py, tmp_path):
    home = make_toolkit(tmp_path / "cuda", version="12.4")
    toolkit = setup_py.find_cuda_toolkit({"CUDA_HOME": str(home)})
    torch = SimpleNamespace(__version__="2.15.0", version=SimpleNamespace(cuda="13.2"))
    with pytest.raises(setup_py.BuildError, match=r"is CUDA 12\.4 .* for CUDA 13\.2"):
        setup_py.check_cuda_toolkit(toolkit, torch)


def test_other_minor_version_is_fine(setup_py, tmp_path):
    # This nvcc "compiles" whatever it is given: what is tested is that versions don't stop it.
    home = make_toolkit(tmp_path / "cuda", version="13.0")
    toolkit = setup_py.find_cuda_toolkit({"CUDA_HOME": str(home)})
    torch = SimpleNamespace(__version__="2.15.0", version=SimpleNamespace(cuda="13.2"))
    setup_py.check_cuda_toolkit(toolkit, torch)


def test_paths_of_torchs_headers_are_mapped_also_where_ccache_makes_them_relative(setup_py):
    folder = Path(torch.__file__).parent
    here = setup_py.ROOT / "build" / "temp.linux"
    maps = [flag for flag in setup_py.cxx_flags() if flag.startswith("-fmacro-prefix-map=")]
    assert f"-fmacro-prefix-map={folder}=torch" in maps
    relative = [flag.split("=")[1] for flag in maps if flag.split("=")[1].startswith("..")]
    assert [(here / path).resolve() for path in relative] == [folder.resolve()]


def test_line_tables_are_for_builds_in_place(setup_py, monkeypatch, tmp_path):
    toolkit = setup_py.find_cuda_toolkit({"CUDA_HOME": str(make_toolkit(tmp_path))})
    for command, has_lines in ((["bdist_wheel"], False), (["build_ext", "--inplace"], True)):
        monkeypatch.setattr(sys, "argv", ["setup.py", *command])
        flags = setup_py.cuda_extension(toolkit, "9.0").extra_compile_args["nvcc"]
        assert ("-lineinfo" in flags) == has_lines and "-Xfatbin=-compress-all" in flags


def test_nvcc_that_refuses_the_compiler_says_why(setup_py, tmp_path):
    home = make_toolkit(tmp_path / "cuda", version="13.0")
    toolkit = setup_py.find_cuda_toolkit({"CUDA_HOME": str(home)})
    write_script(home / "bin" / "nvcc", "echo 'error: unsupported GNU version!' >&2; exit 1")
    torch = SimpleNamespace(__version__="2.15.0", version=SimpleNamespace(cuda="13.2"))
    with pytest.raises(setup_py.BuildError, match="unsupported GNU version"):
        setup_py.check_cuda_toolkit(toolkit, torch)


@pytest.mark.parametrize(
    ("known", "archs"),
    [
        (("7.0", "7.5", "8.0", "8.6", "9.0"), "7.5;8.0;8.6;9.0+PTX"),
        (("8.0", "9.0", "10.0", "11.0", "12.0", "12.1"), "8.0;9.0;10.0;11.0;12.0+PTX"),
        (("14.0", "13.0"), "14.0+PTX"),
    ],
)
@pytest.mark.parametrize("wanted", ["", "native"])
def test_default_architectures_are_those_nvcc_knows(setup_py, tmp_path, known, archs, wanted):
    toolkit = setup_py.CudaToolkit(tmp_path, (13, 0), known)
    assert setup_py.cuda_archs(wanted, toolkit, gpus=[]) == archs


@pytest.mark.parametrize(
    ("gpus", "archs"),
    [
        ([(9, 0)], "9.0+PTX"),
        ([(9, 0), (8, 0), (9, 0)], "8.0;9.0+PTX"),
        ([(12, 1)], "12.0+PTX"),  # newer than this toolkit
    ],
)
def test_gpus_present_decide(setup_py, tmp_path, gpus, archs):
    # Listed as nvcc 13 lists them: 103 after 110.
    known = ("7.5", "8.0", "9.0", "10.0", "11.0", "10.3", "12.0")
    toolkit = setup_py.CudaToolkit(tmp_path, (13, 0), known)
    assert setup_py.cuda_archs("", toolkit, gpus) == archs
    assert setup_py.cuda_archs("8.6", toolkit, gpus) == "8.6"


def test_gpu_older_than_the_toolkit_is_named(setup_py, tmp_path):
    toolkit = setup_py.CudaToolkit(tmp_path, (13, 0), ("7.5", "8.0"))
    with pytest.raises(setup_py.BuildError, match=r"capability 6\.1 and .* 7\.5 or newer"):
        setup_py.cuda_archs("", toolkit, gpus=[(6, 1)])


def test_cuda_with_torch_without_cuda_says_so(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py, "sources", lambda *patterns: ["csrc/cuda/some.cu"])
    torch = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
    with pytest.raises(setup_py.BuildError, match=r"torch 2\.13\.0\+cpu is built without CUDA"):
        setup_py.plan_cuda("cuda", torch)


def test_auto_with_torch_without_cuda_leaves_cuda_out(setup_py, monkeypatch, capsys):
    monkeypatch.setattr(setup_py, "sources", lambda *patterns: ["csrc/cuda/some.cu"])
    torch = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
    assert setup_py.plan_cuda("auto", torch) is None
    assert "building without CUDA kernels, because torch 2.13.0+cpu" in capsys.readouterr().err


# --- torch ----------------------------------------------------------------------------------------


def test_target_version_is_torch_2_11(setup_py):
    # torch/headeronly/version.h: major and minor are the two highest bytes.
    assert setup_py.TORCH_TARGET == f"-DTORCH_TARGET_VERSION={(2 << 56) | (11 << 48):#018x}"


def test_torch_too_old_is_named(setup_py, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.10.1"))
    with pytest.raises(setup_py.BuildError, match=r"torch >= 2\.11 and this is torch 2\.10\.1"):
        setup_py.import_torch()
