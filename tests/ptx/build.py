"""The kernels as nvcc compiled them, for the emulation: its host code, and its PTX run on the host.

``library(arch)`` compiles ``csrc/cuda`` to PTX for an architecture ("sm_90") and links nvcc's own host
code with the emulation in place of libcudart: grids, parameters and workspaces are real ones. A kernel
is translated and compiled when it is first launched. Both are kept in ``build/ptx`` by their contents.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_emulation import emulator
from tests.ptx import translate

HERE = Path(__file__).parent
HOST = ["-std=c++20", "-O1", "-fPIC", "-fwrapv", "-ffp-contract=off", "-w"]
NVCC = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-w", "--keep"]
FIND = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)


def nvcc() -> str | None:
    found = os.environ.get("NVCC") or shutil.which("nvcc")
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return found or (str(home) if home.exists() else None)


def run(command: list[str]) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def digest(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.encode())
    return found.hexdigest()[:16]


def depends(source: Path) -> bytes:
    """The contents of a source and of the project's headers that it includes."""
    include = ["-I", str(emulator.HERE / "include"), "-I", str(emulator.CSRC), "-I", str(HERE)]
    rule = run([*emulator.compiler(), "-std=c++20", "-MM", "-x", "c++", *include, str(source)])
    files = rule.partition(":")[2].replace("\\\n", " ").split()
    return b"".join(Path(f).read_bytes() for f in sorted(files))


def device_file(source: Path, arch: str, folder: Path) -> tuple[Path, Path]:
    """nvcc's object, without machine code, and PTX of a .cu file."""
    flags = [*NVCC, f"-gencode=arch=compute_{arch[3:]},code=compute_{arch[3:]}"]
    name = digest(depends(source), " ".join(flags), str(nvcc())) + "-" + source.stem
    target, ptx = folder / f"{name}.o", folder / f"{name}.ptx"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, source.stem + ".o")
            include = ["-I", str(emulator.CSRC)]
            run(
                [
                    nvcc(),
                    *flags,
                    "--keep-dir",
                    scratch,
                    *include,
                    "-c",
                    str(source),
                    "-o",
                    str(made),
                ]
            )
            next(Path(scratch).glob("*.ptx")).rename(ptx)
            made.rename(target)
    return target, ptx


def host_file(source: Path, folder: Path) -> Path:
    include = ["-I", str(emulator.HERE / "include"), "-I", str(emulator.CSRC), "-I", str(HERE)]
    name = digest(depends(source), " ".join(HOST))
    target = folder / f"{name}-{source.stem}.o"
    if not target.exists():
        unfinished = f"{target}.{os.getpid()}"
        command = [*emulator.compiler(), *HOST, "-frounding-math", *include]
        run([*command, "-c", str(source), "-o", unfinished])
        os.replace(unfinished, target)
    return target


class Kernels:
    """The kernels' PTX by name; each becomes a function when it is asked for."""

    def __init__(self, texts: dict[str, str], folder: Path):
        self.texts, self.folder = texts, folder
        self.loaded: dict[str, ctypes.CDLL] = {}
        self.errors: list[str] = []

    def find(self, name: bytes) -> int | None:
        try:
            library = self.loaded.get(name.decode()) or self.load(name.decode())
            return ctypes.cast(library.kernel, ctypes.c_void_p).value
        except (RuntimeError, OSError, KeyError, translate.Unknown) as error:  # C can't take it
            self.errors.append(str(error))
            return None

    def load(self, name: str) -> ctypes.CDLL:
        source = translate.translate(self.texts[name])
        target = self.folder / f"{digest(source, depends(HERE / 'machine.h'), ' '.join(HOST))}.so"
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                file, made = Path(scratch, "kernel.cpp"), Path(scratch, "kernel.so")
                file.write_text(source)
                include = ["-I", str(HERE), "-I", str(emulator.HERE / "include")]
                run([*emulator.compiler(), *HOST, *include, "-shared", str(file), "-o", str(made)])
                made.rename(target)
        self.loaded[name] = ctypes.CDLL(str(target))
        return self.loaded[name]


def bare() -> tuple[ctypes.CDLL, Path]:
    """The emulation with no kernel of the project in it, for PTX written by hand."""
    folder = emulator.ROOT / "build" / "ptx" / "bare"
    folder.mkdir(parents=True, exist_ok=True)
    objects = [host_file(s, folder) for s in (HERE / "cudart.cpp", emulator.HERE / "emulation.cpp")]
    target = folder / f"{digest(*map(str, objects))}.so"
    if not target.exists():
        unfinished = f"{target}.{os.getpid()}"
        link = ["-shared", "-Wl,-Bsymbolic"]
        run([*emulator.compiler(), *link, *map(str, objects), "-o", unfinished])
        os.replace(unfinished, target)
    return ctypes.CDLL(str(target), ctypes.RTLD_GLOBAL), folder


def library(arch: str) -> tuple[Path, Kernels]:
    """The shared library of an architecture, as the emulator loads it, and its kernels."""
    folder = emulator.ROOT / "build" / "ptx" / arch
    folder.mkdir(parents=True, exist_ok=True)
    hosts = [HERE / "cudart.cpp", *(emulator.HERE / f for f in ("emulation.cpp", "drivers.cpp"))]
    sources = sorted((emulator.CSRC / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        devices = pool.map(lambda s: device_file(s, arch, folder), sources)
        objects = list(pool.map(lambda s: host_file(s, folder), hosts))
        devices = list(devices)
    objects += [o for o, _ in devices]
    target = folder / f"{digest(*map(str, objects), 'symbolic')}.so"
    if not target.exists():
        unfinished = f"{target}.{os.getpid()}"
        # -Bsymbolic: torch has loaded a libcudart of its own.
        link = ["-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"]
        run([*emulator.compiler(), *link, *map(str, objects), "-o", unfinished])
        os.replace(unfinished, target)
    texts: dict[str, str] = {}
    for _, ptx in devices:
        texts.update(translate.kernels(ptx.read_text()))
    return target, Kernels(texts, folder)
