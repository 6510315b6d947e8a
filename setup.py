"""Build of the native kernels, vae_fast._C (CPU) and vae_fast._C_cuda, and vae_fast._C_autograd.

Everything about the package that is not compiled stands in pyproject.toml. This file decides what
to compile (VAE_FAST_BUILD), with which tools, and says in one sentence why something is left out.

The kernels' libraries use LibTorch's stable ABI with 2.11 as the oldest torch, so a binary built
against one torch runs under any other from 2.11 on. That is why a plain `pip install .`, which builds
against whatever torch pip put in its isolated environment, is right for the user's torch as well.
_C_autograd makes small calls shorter, serves the torch that it was built with, and is not needed.

Environment:
    VAE_FAST_BUILD        auto (default) | cpu | cuda | off
    TORCH_CUDA_ARCH_LIST  GPU architectures, such as "8.0;9.0+PTX"; default: the GPUs present,
                          else DEFAULT_CUDA_ARCHS as far as the toolkit knows them
    CUDA_HOME             the CUDA toolkit; default: the one behind the nvcc on PATH
    CXX                   the C++ compiler
    VAE_FAST_INSTRUMENT   address (with undefined behaviour) | thread: the CPU library alone, for
                          scripts/sanitize_cpu.sh | coverage: without CUDA, for scripts/coverage.sh;
                          into build/instrumented/NAME
    MAX_JOBS              compilations at a time
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
BUILD_CHOICES = ("auto", "cpu", "cuda", "off")
INSTRUMENTS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
    # Counters that threads share, each exact.
    "coverage": ["--coverage", "-fprofile-update=atomic", "-fprofile-abs-path"],
}
OLDEST_TORCH = (2, 11)
# The macro's layout is one byte each of major, minor, patch: torch/headeronly/version.h.
TORCH_TARGET = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
# Turing to Blackwell. "+PTX" on the last one lets later GPUs compile for themselves.
DEFAULT_CUDA_ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0")
# Commands that compile. The others (sdist, egg_info, clean, ...) need neither torch nor a compiler.
COMPILING_COMMANDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}


class BuildError(Exception):
    """Something the user has to change; its text is the one sentence that they read."""


def say(text: str) -> None:
    print(f"vae_fast: {text}", file=sys.stderr, flush=True)


def build_choice(environ: dict[str, str]) -> str:
    """The value of VAE_FAST_BUILD; an unknown one is an error that lists those there are."""
    choice = environ.get("VAE_FAST_BUILD", "").strip().lower() or "auto"
    if choice not in BUILD_CHOICES:
        raise BuildError(
            f"VAE_FAST_BUILD={environ['VAE_FAST_BUILD']!r} is not one of "
            f"{', '.join(BUILD_CHOICES)}; set it to one of these or leave it unset."
        )
    return choice


def instrument(environ: dict[str, str]) -> str:
    """The value of VAE_FAST_INSTRUMENT, or ""; an unknown one is an error that lists those there are."""
    name = environ.get("VAE_FAST_INSTRUMENT", "")
    if name and name not in INSTRUMENTS:
        raise BuildError(
            f"VAE_FAST_INSTRUMENT={name!r} is not one of {', '.join(INSTRUMENTS)}; set it to one of "
            "these or leave it unset."
        )
    return name


def import_torch():
    """torch, checked to be new enough to build against."""
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            "building the kernels needs torch >= 2.11 in the building environment "
            f"({error}); run `pip install torch`, drop --no-build-isolation, or set "
            "VAE_FAST_BUILD=off to install without native kernels."
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise BuildError(
            f"building the kernels needs torch >= 2.11 and this is torch {torch.__version__}; "
            "run `pip install --upgrade torch`."
        )
    return torch


# --- the C++ compiler ---------------------------------------------------------------------------


def cxx_compiler() -> str:
    """The command that torch's ninja build will call (it reads CXX, and falls back to c++)."""
    return os.environ.get("CXX") or "c++"


def missing_for_cpu() -> str | None:
    """Why the CPU kernels can't be compiled here, or None if they can."""
    if not sys.platform.startswith("linux"):
        return f"native kernels are built on Linux only, and this is {sys.platform}"
    command = shlex.split(cxx_compiler())
    if shutil.which(command[0]) is None:
        return (
            f"no C++ compiler ({command[0]!r} is not on PATH): "
            "install g++ or clang++, or set CXX to one"
        )
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").is_file():
        return (
            f"Python's own headers are missing (no Python.h in {include}): "
            "install python3-dev or its like"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        # A concept and a standard header: both a compiler before C++20 and one without its
        # standard library fail here, in a second, and not in the middle of a build.
        source.write_text(
            "#include <concepts>\n#include <vector>\n"
            "template <std::integral T> T twice(T x) { return 2 * x; }\n"
            'extern "C" int probe() { return std::vector<int>{twice(1)}[0]; }\n'
        )
        library = Path(folder, "probe.so")
        flags = ["-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)]
        result = run(*command, *flags)
    if result.returncode != 0:
        return f"{cxx_compiler()!r} can't build a C++20 library: {last_line(result.stderr)}"
    return None


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


def last_line(text: str) -> str:
    """The most telling line of a compiler's output: the first with 'error', or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")


# --- the CUDA toolkit ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaToolkit:
    home: Path
    version: tuple[int, int]
    archs: tuple[str, ...]  # what nvcc can compile for: "7.5", "8.0", ...

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    def folders(self, *names: str) -> list[str]:
        """Those of the named folders that exist, in the toolkit or its targets folder."""
        tops = [self.home, *sorted(self.home.glob("targets/*-linux"))]
        return [str(top / name) for top in tops for name in names if (top / name).is_dir()]


def is_cuda_home(home: Path) -> bool:
    """A folder with an nvcc is not enough: /usr/local/bin/nvcc may be somebody's wrapper script."""
    headers = [home / "include", *home.glob("targets/*/include")]
    return (home / "bin" / "nvcc").is_file() and any(
        (folder / "cuda_runtime.h").is_file() for folder in headers
    )


def cuda_home_of(nvcc: str) -> Path | None:
    """The toolkit that an nvcc belongs to, be it a link or a wrapper script."""
    for path in (Path(nvcc), Path(nvcc).resolve()):
        if is_cuda_home(path.parent.parent):
            return path.parent.parent
    # A wrapper: nvcc itself says where it stands (TOP=...) when asked what it would do.
    result = run(nvcc, "--dryrun", "-c", "x.cu")
    top = re.search(r"^#\$ TOP=(.+)$", result.stderr + result.stdout, flags=re.MULTILINE)
    if top and is_cuda_home(home := Path(top.group(1).strip()).resolve()):
        return home
    return None


def find_cuda_toolkit(environ: dict[str, str]) -> CudaToolkit:
    """The CUDA toolkit: from CUDA_HOME or CUDA_PATH, from PATH, or in /usr/local/cuda."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            home = Path(environ[name])
            if not is_cuda_home(home):
                raise BuildError(
                    f"{name}={home} is no CUDA toolkit (it lacks bin/nvcc or "
                    f"include/cuda_runtime.h); point {name} at one, or unset it"
                )
            break
    else:
        nvcc = shutil.which("nvcc", path=environ.get("PATH"))
        home = cuda_home_of(nvcc) if nvcc else None
        if home is None and is_cuda_home(Path("/usr/local/cuda")):
            home = Path("/usr/local/cuda")
        if home is None:
            found = f"{nvcc} leads to no toolkit" if nvcc else "nvcc is not on PATH"
            raise BuildError(
                f"no CUDA toolkit was found ({found} and /usr/local/cuda has none): install "
                "one (nvcc and the runtime headers), or set CUDA_HOME to where it is"
            )
    nvcc = str(home / "bin" / "nvcc")
    version = re.search(r"release (\d+)\.(\d+)", run(nvcc, "--version").stdout)
    if version is None:
        raise BuildError(f"{nvcc} --version does not name a CUDA release; reinstall the toolkit")
    listed = run(nvcc, "--list-gpu-arch").stdout
    archs = [f"{n[:-1]}.{n[-1]}" for n in re.findall(r"compute_(\d+)\b", listed)]
    return CudaToolkit(home, (int(version[1]), int(version[2])), tuple(archs))


def check_cuda_toolkit(toolkit: CudaToolkit, torch) -> None:
    """Raises BuildError if the toolkit can't build for this torch."""
    ours = ".".join(map(str, toolkit.version))
    # Within a major version CUDA's runtime is compatible both ways, so only that has to match.
    if toolkit.version[0] != int(torch.version.cuda.split(".")[0]):
        raise BuildError(
            f"the toolkit in {toolkit.home} is CUDA {ours} and torch {torch.__version__} is built "
            f"for CUDA {torch.version.cuda}: install a toolkit of that major version, or a torch "
            f"for CUDA {toolkit.version[0]}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("#include <cuda_runtime.h>\n__global__ void probe(int* x) { *x = 1; }\n")
        command = [str(toolkit.nvcc), "-std=c++20", "-c", str(source), "-o", f"{source}.o"]
        if os.environ.get("CC"):
            command += ["-ccbin", os.environ["CC"]]  # as torch's build will
        result = run(*command)
    if result.returncode != 0:
        reason = last_line(result.stderr + result.stdout)
        raise BuildError(f"{toolkit.nvcc} can't compile with this C++ compiler: {reason}")


def cuda_archs(wanted: str, toolkit: CudaToolkit, gpus: list[tuple[int, int]]) -> str:
    """What to compile for: TORCH_CUDA_ARCH_LIST if set, else the GPUs here, else the default."""
    if wanted and wanted != "native":
        return wanted
    known = sorted(tuple(map(int, arch.split("."))) for arch in toolkit.archs)
    if gpus:
        # A GPU newer than the toolkit gets the newest code there is, and compiles its PTX.
        fitting = {max((arch for arch in known if arch <= gpu), default=gpu) for gpu in gpus}
        if missing := sorted(fitting - set(known)):
            raise BuildError(
                f"this machine's GPU has compute capability {missing[0][0]}.{missing[0][1]} and "
                f"{toolkit.nvcc} compiles for {toolkit.archs[0]} or newer: install an older "
                "toolkit, or set TORCH_CUDA_ARCH_LIST"
            )
        archs = [f"{major}.{minor}" for major, minor in sorted(fitting)]
    else:
        archs = [arch for arch in DEFAULT_CUDA_ARCHS if arch in toolkit.archs]
        archs = archs or [f"{known[-1][0]}.{known[-1][1]}"]
    return ";".join(archs) + "+PTX"


# --- the two libraries --------------------------------------------------------------------------


def torch_build():
    """torch.utils.cpp_extension, without its warnings: about a missing GPU and about a toolkit of
    another minor version, both of which are fine, and about its own guess at CUDA_HOME."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch.utils.cpp_extension

    return torch.utils.cpp_extension


def include_dirs() -> list[str]:
    dirs = [str(ROOT / "csrc")]
    try:
        import pybind11

        dirs.append(pybind11.get_include())
    except ImportError:  # --no-build-isolation without it: torch brings a copy of its headers
        pass
    return dirs + torch_build().include_paths()


def cxx_flags() -> list[str]:
    import torch

    # Neither -march nor -ffast-math: instruction sets are chosen in the sources and at load, and
    # code that must see NaN can't be compiled as if there were none. -std is torch's to choose. -g0
    # undoes the -g of Python's own flags, which is half the compile time and most of the file. g++ 12
    # warns ten thousand times of undefined registers in its own AVX-512 headers.
    quiet = ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    flags = ["-O3", "-g0", "-fno-math-errno", "-fvisibility=hidden", *quiet]
    # torch's headers put their paths into errors: the building machine's folders stay out of them.
    # ccache with a base directory (CCACHE_BASEDIR) makes the paths relative to the objects' folder.
    folder = Path(torch.__file__).parent
    for prefix in (folder, os.path.relpath(folder, ROOT / "build" / "temp")):
        flags.append(f"-fmacro-prefix-map={prefix}=torch")
    if name := instrument(dict(os.environ)):
        flags[:2] = ["-O1", "-g1", "-fno-omit-frame-pointer", *INSTRUMENTS[name]]
    return [*flags, TORCH_TARGET, f'-DVAE_FAST_BUILD_TORCH="{torch.__version__}"']


def sources(*patterns: str) -> list[str]:
    # setuptools wants them relative to setup.py.
    return sorted(
        os.path.relpath(path, ROOT) for pattern in patterns for path in glob(str(ROOT / pattern))
    )


def link_args(*libraries: str) -> list[str]:
    """Against what of torch is really used and nothing else: that is what keeps one binary good
    for every torch. (In extra_link_args because --as-needed counts only for what follows it.)"""
    folders = [f"-L{folder}" for folder in torch_build().library_paths()]
    instruments = INSTRUMENTS.get(instrument(dict(os.environ)), [])
    return ["-Wl,--as-needed", *folders, *(f"-l{library}" for library in libraries), *instruments]


def cpu_extension() -> Extension:
    return Extension(
        "vae_fast._C",
        sources(
            "csrc/library.cpp",
            "csrc/module.cpp",
            "csrc/cpu/*.cpp",
            "csrc/norm/*.cpp",
            "csrc/step/*.cpp",
        ),
        depends=sources("csrc/**/*.h"),
        include_dirs=include_dirs(),
        extra_compile_args={"cxx": [*cxx_flags(), "-Wno-unknown-pragmas"]},
        extra_link_args=link_args("torch_cpu"),
        language="c++",
    )


def autograd_extension() -> Extension:
    """Autograd nodes in C++, which are outside the stable ABI: vae_fast/backend.py loads them under
    the torch that they were built with alone, and does without them elsewhere."""
    flags = [flag for flag in cxx_flags() if flag != TORCH_TARGET]
    flags = ["-O2" if flag == "-O3" else flag for flag in flags]
    return Extension(
        "vae_fast._C_autograd",
        sources("csrc/autograd/*.cpp"),
        include_dirs=include_dirs(),
        extra_compile_args={"cxx": flags},
        extra_link_args=link_args("torch_python", "torch", "torch_cpu", "c10"),
        language="c++",
        optional=True,
    )


def cuda_extension(toolkit: CudaToolkit, archs: str) -> Extension:
    # USE_CUDA shows torch's declarations for CUDA streams; no header of torch needs more of it.
    host_flags = [*cxx_flags(), "-DUSE_CUDA", f'-DVAE_FAST_CUDA_ARCHS="{archs}"']
    nvcc_flags = ["-O3", "-Xcompiler=-fvisibility=hidden,-Wno-psabi", TORCH_TARGET]
    # Lines for compute-sanitizer and profilers double the library: a wheel goes without them.
    nvcc_flags += ["-Xfatbin=-compress-all", *(["-lineinfo"] if "--inplace" in sys.argv else [])]
    return Extension(
        "vae_fast._C_cuda",
        sources("csrc/library_cuda.cpp", "csrc/module_cuda.cpp", "csrc/cuda/*.cu"),
        include_dirs=[*include_dirs(), *toolkit.folders("include")],
        extra_compile_args={"cxx": host_flags, "nvcc": nvcc_flags},
        extra_link_args=[
            *link_args("torch_cpu", "torch_cuda"),
            *(f"-L{folder}" for folder in toolkit.folders("lib64", "lib")),
            "-lcudart",
        ],
        language="c++",
    )


def plan_cuda(choice: str, torch) -> Extension | None:
    """The CUDA library; None, with a word why, where it can't be built and wasn't asked for."""
    if not sources("csrc/cuda/*.cu"):
        if choice == "cuda":
            raise BuildError("VAE_FAST_BUILD=cuda, but csrc/cuda holds no .cu sources.")
        return None
    try:
        if torch.version.cuda is None:
            raise BuildError(
                f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch "
                "in the building environment"
            )
        toolkit = find_cuda_toolkit(dict(os.environ))
        check_cuda_toolkit(toolkit, torch)
        gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        archs = cuda_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), toolkit, gpus)
    except BuildError as error:
        if choice == "cuda":
            raise BuildError(f"VAE_FAST_BUILD=cuda can't be done, because {error}.") from None
        say(f"building without CUDA kernels, because {error}.")
        return None

    # Before torch.utils.cpp_extension is imported and takes its own guess, which a wrapper script
    # leads one folder too high.
    os.environ["CUDA_HOME"] = str(toolkit.home)
    # check_cuda_toolkit has tried what torch would look up in a table of compiler versions.
    os.environ.setdefault("TORCH_DONT_CHECK_COMPILER_ABI", "ON")
    os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    say(f"building CUDA kernels with {toolkit.nvcc} for {archs}.")
    return cuda_extension(toolkit, archs)


def plan() -> list[Extension]:
    """The libraries to compile, by VAE_FAST_BUILD and what is on this machine."""
    choice = build_choice(dict(os.environ))
    if choice == "off":
        say("building without native kernels, because VAE_FAST_BUILD=off.")
        return []
    if reason := missing_for_cpu():
        if choice != "auto":
            raise BuildError(f"VAE_FAST_BUILD={choice} can't be done, because {reason}.")
        say(
            f"building without native kernels, because {reason}; "
            "the package will run on its reference backend, which is plain PyTorch."
        )
        return []
    torch = import_torch()
    if name := instrument(dict(os.environ)):
        say(f"building instrumented CPU kernels ({name}) into build/instrumented/{name}.")
        return [cpu_extension(), *([autograd_extension()] if name == "coverage" else [])]
    cuda = plan_cuda(choice, torch) if choice != "cpu" else None
    say(f"building CPU kernels against torch {torch.__version__}.")
    autograd = [autograd_extension()] if sources("csrc/autograd/*.cpp") else []
    return [cpu_extension(), *autograd, *([cuda] if cuda else [])]


def build_command() -> type:
    """torch's build_ext, ending in a sentence where compilation fails."""

    class BuildKernels(torch_build().BuildExtension):
        def finalize_options(self) -> None:
            if name := instrument(dict(os.environ)):
                # Never where a user's package would load it: it is slow, and may need a runtime.
                self.inplace = False
                self.build_lib = str(ROOT / "build" / "instrumented" / name)
                self.build_temp = f"{self.build_lib}/objects"
            super().finalize_options()

        def build_extension(self, ext: Extension) -> None:
            try:
                super().build_extension(ext)
            except RuntimeError as error:
                if not ext.optional or "compiling objects" not in str(error):
                    raise
                say(f"building without {ext.name}, which does not compile with this torch.")

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except RuntimeError as error:
                if "compiling objects" not in str(error):
                    raise
                # ninja has printed what the compiler said; torch's traceback would bury it.
                sys.exit(
                    "vae_fast: compiling the kernels failed (the compiler's words are above); "
                    "VAE_FAST_BUILD=cpu leaves the CUDA kernels out, VAE_FAST_BUILD=off all."
                )

    return BuildKernels


def main() -> None:
    os.chdir(ROOT)
    extensions = []
    if COMPILING_COMMANDS & set(sys.argv):
        try:
            extensions = plan()
        except BuildError as error:
            # The sentence alone: a traceback would only hide it.
            sys.exit(f"vae_fast: {error}")
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": build_command()} if extensions else {},
        # An editable package is a path on sys.path. setuptools' other way, an import hook, loses to a
        # folder named vae_fast beside a script, such as the clone itself.
        options={"editable_wheel": {"mode": "compat"}},
    )


if __name__ == "__main__":
    main()
