"""The CUDA drivers on the host: builds the emulation and calls it with torch tensors.

``csrc/cuda/*.cu`` are compiled as they are, by the system's C++ compiler against the stand-in
headers beside this file. Every call runs with all memory checked: inputs are copied into buffers
of exactly their size, at an offset from alignment that the test chooses; outputs and workspace
start out poisoned, must be written exactly once, and can't be read before that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
FLAGS += ["-U_FORTIFY_SOURCE"]  # its check of longjmp takes a switch of fibers for an error

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)  # args.h's order
REDUCTIONS = ("none", "sum", "batchmean")


def compiler() -> list[str] | None:
    command = shlex.split(os.environ.get("CXX") or "c++")
    return command if shutil.which(command[0]) else None


# --- building ------------------------------------------------------------------------------------


def _sources() -> list[Path]:
    return [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "emulation.cpp", HERE / "drivers.cpp"]


def _digest() -> str:
    inputs = [*_sources(), *sorted((HERE / "include").glob("*.h"))]
    folders = ("cuda", "likelihoods", "math", "norm", "ops")
    inputs += [p for f in folders for p in sorted((CSRC / f).glob("*.*h"))]
    digest = hashlib.sha256(" ".join([*compiler(), *FLAGS]).encode())
    for path in inputs:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Path:
    """The emulation as a shared library; compiled only if a source has changed."""
    folder = ROOT / "build" / "cuda_emulation"
    library = folder / f"emulation-{_digest()}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    include = ["-I", str(HERE / "include"), "-I", str(CSRC)]

    def run(*arguments: str) -> None:
        command = [*compiler(), *FLAGS, *arguments]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"the emulation does not compile:\n{result.stderr}")

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch, source.name + ".o") for source in _sources()]
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(run, *include, "-x", "c++", "-c", str(source), "-o", str(target))
                for source, target in zip(_sources(), objects, strict=True)
            ]
            for job in jobs:
                job.result()
        unfinished = Path(scratch, "emulation.so")
        run("-shared", *map(str, objects), "-o", str(unfinished))
        unfinished.rename(library)
    for old in folder.glob("emulation-*.so"):
        if old != library:
            old.unlink(missing_ok=True)
    return library


# --- the argument structs of csrc/ops/args.h, whose layout C++ says ---------------------------------

_int, _int64, _void = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_TYPES = {
    "P": ctypes.c_void_p,
    "i": ctypes.c_int,
    "q": ctypes.c_int64,
    "d": ctypes.c_double,
    "?": ctypes.c_bool,
}


def _structs(layout: str) -> dict[str, type[ctypes.Structure]]:
    """The structs of a layout (``emulated_layout``'s text) as classes."""
    structs: dict[str, type[ctypes.Structure]] = {}
    for block in layout.split("struct ")[1:]:
        (name, size), *fields = (line.split() for line in block.splitlines())
        types = {}
        for field, _, kind, count in fields:
            one = _TYPES.get(kind) or structs[kind]
            types[field] = one * int(count) if int(count) else one
        made = type(name, (ctypes.Structure,), {"_fields_": list(types.items())})
        for field, offset, *_ in fields:
            assert getattr(made, field).offset == int(offset), f"csrc/ops/fields.h: {name}.{field}"
        assert ctypes.sizeof(made) == int(size), f"csrc/ops/fields.h lacks a field of {name}"
        structs[name] = made
    return structs


# What ``emulation_declare`` calls them.
INPUT, OUTPUT, CHANGED = 0, 1, 3

# --- calling -------------------------------------------------------------------------------------


# Drivers that need a workspace: their names, and the prefix of the function that gives its size.
_SIZED = {"gaussian_forward": "gaussian", "nll": "nll", "elbo": "elbo"}
_SIZED |= {name: name for name in ("group_norm", "group_norm_backward", "step_decide")}


class Emulator:
    """One emulated call at a time: ``begin``, declare tensors with ``give`` and ``take``, ``run``.

    ``offset`` shifts every buffer by so many elements from a 64-byte boundary. ``order`` is the
    order in which blocks and threads run: 0 forward, 1 backward, others shuffled.
    """

    def __init__(self, library: Path | None = None) -> None:
        self.lib = ctypes.CDLL(str(library or build()), ctypes.RTLD_GLOBAL if library else 0)
        self.lib.emulation_error.restype = ctypes.c_char_p
        for name in ("layout", "refusal"):
            getattr(self.lib, f"emulated_{name}").restype = ctypes.c_char_p
        for name in set(_SIZED.values()):
            getattr(self.lib, f"emulated_{name}_workspace").restype = ctypes.c_size_t
        self.lib.emulation_declare.argtypes = [_void, ctypes.c_size_t, _int]
        self.lib.emulated_split.argtypes = [_int64, _int64, _int, _void, _int64, _void]
        self.lib.emulated_philox_words.argtypes = [_void, ctypes.c_uint64, _int64, _void]
        self.structs = _structs(self.lib.emulated_layout().decode())
        count = self.lib.emulated_likelihoods(None, None)
        names, reads_half = (ctypes.c_char_p * count)(), (ctypes.c_bool * count)()
        self.lib.emulated_likelihoods(names, reads_half)
        self.likelihoods = {n.decode(): h for n, h in zip(names, reads_half, strict=True)}
        self.begin()

    def begin(self, order: int = 0, offset: int = 0) -> None:
        self.lib.emulation_reset(order)
        self.offset = offset
        self._buffers: list[torch.Tensor] = []
        self._written: list[int] = []  # which regions must be written exactly once
        self._changed: list[int] = []  # and which at most once
        self.launches = 0

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype, kind: int) -> torch.Tensor:
        count = 1
        for extent in shape:
            count *= extent
        size = torch.empty((), dtype=dtype).element_size()
        raw = torch.full(((count + self.offset) * size + 64,), 0xFF, dtype=torch.uint8)
        start = -raw.data_ptr() % 64 + self.offset * size
        t = raw[start : start + count * size].view(dtype).view(shape)
        self._buffers.append(raw)
        self.lib.emulation_declare(t.data_ptr(), count * size, kind)
        return t

    def give(self, t: torch.Tensor | None) -> torch.Tensor | None:
        """An input: a copy of ``t`` that the kernel may read."""
        if t is None:
            return None
        copy = self._buffer(tuple(t.shape), t.dtype, INPUT)
        if t.dtype == torch.bool:  # byte by byte: torch's own copy would make every true a 1
            copy, t = copy.view(torch.uint8), t.view(torch.uint8)
        copy.copy_(t)
        return copy  # callers use only its address

    def change(self, t: torch.Tensor | None) -> torch.Tensor | None:
        """A copy of ``t`` that the kernel may read, and write once where it has been read."""
        if t is None:
            return None
        copy = self._buffer(tuple(t.shape), t.dtype, CHANGED)
        self._changed.append(len(self._buffers) - 1)
        return copy.copy_(t)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An output: poisoned, to be written once."""
        t = self._buffer(shape, dtype, OUTPUT)
        self._written.append(len(self._buffers) - 1)
        return t

    def run(self, name: str, args: ctypes.Structure) -> None:
        """Run driver ``name``; raises what the emulation found wrong."""
        call = getattr(self.lib, f"emulated_{name}")
        if name in _SIZED:
            need = getattr(self.lib, f"emulated_{_SIZED[name]}_workspace")(ctypes.byref(args))
            offset, self.offset = self.offset, 0  # torch allocates the workspace: it is aligned
            workspace = self._buffer((need,), torch.uint8, OUTPUT) if need else None
            self.offset = offset
            pointer = ctypes.c_void_p(workspace.data_ptr() if need else None)
            code = call(ctypes.byref(args), pointer)
            self.finish(code, len(self._buffers) - 1 if need else None)
        else:
            self.finish(call(ctypes.byref(args)))

    def split(
        self, segments: int, length: int, half: bool, task: int
    ) -> tuple[list[int], list[int]]:
        """[tasks, lanes, blocks] of the problem; [segment, begin, end] of one task."""
        cut, task_range = (ctypes.c_int64 * 3)(), (ctypes.c_int64 * 3)()
        self.lib.emulated_split(segments, length, int(half), cut, task, task_range)
        return list(cut), list(task_range)

    def finish(self, code: int, workspace: int | None = None) -> None:
        error = self.lib.emulation_error().decode()
        assert not error and code == 0, f"{error or 'the driver failed'} (code {code})"
        self.launches = self.lib.emulation_launches()
        fewest, most = ctypes.c_int(), ctypes.c_int()
        for region in self._changed:
            self.lib.emulation_writes(region, ctypes.byref(fewest), ctypes.byref(most))
            assert most.value <= 1, f"bytes of region {region} were written {most.value} times"
        for region in [*self._written, *([] if workspace is None else [workspace])]:
            self.lib.emulation_writes(region, ctypes.byref(fewest), ctypes.byref(most))
            assert (fewest.value, most.value) == (1, 1), (
                f"bytes of region {region} were written {fewest.value} to {most.value} times"
            )


def pointer(t: torch.Tensor | None) -> int | None:
    """For a struct's field; an empty tensor has a pointer too, as on the GPU."""
    return None if t is None else t.data_ptr()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def code(dtype: torch.dtype) -> int:
    return DTYPES.index(dtype)
