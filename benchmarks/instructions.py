"""Instructions per element of every CPU op: they show a regression even on a busy machine.
``python -m benchmarks.instructions`` writes results/instructions.json.

Each op's driver runs on one thread at two sizes, and the difference gives the cost per element. A
parent process steps through the call and counts (instructions.cpp). It needs a C++ compiler and
Linux; callgrind's counts are the same, but it knows no AVX-512.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "instructions.json"
# Where `setup.py build_ext` leaves its objects.
BUILT = ROOT / "build" / f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
LEVELS = ("generic", "avx2", "avx512")
# Whole blocks and vectors, so that tails take no part; few, for a step takes microseconds.
SIZES = (1 << 10, 1 << 11)

_DTYPES = ("float32", "bfloat16", "float16")
OPS = (
    *(f"{op}/{pass_}/{dtype}"
      for op in ("reparameterize", "gaussian_kl", "sample_and_kl")
      for pass_ in ("value", "gradient")
      for dtype in _DTYPES),
    "sample_and_kl/value/float32/kept",
    "sample_and_kl/gradient/float32/kept",
    *(f"bernoulli_nll/{pass_}/{dtype}"
      for pass_ in ("value", "gradient", "both")
      for dtype in (*_DTYPES, "float32/uint8", "bfloat16/uint8")),
    *(f"{name}_nll/both/float32" for name in ("bernoulli_probs", "gaussian", "laplace")),
    *(f"bernoulli_elbo/both/{dtype}" for dtype in ("float32", "bfloat16", "bfloat16/uint8")),
)  # fmt: skip


class Unavailable(RuntimeError):
    """This machine lacks something that counting needs."""


def need() -> None:
    """Raise Unavailable, with what to install, unless instructions can be counted here."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise Unavailable(f"{compiler} is not on PATH: install a C++ compiler")
    if sys.platform != "linux":
        raise Unavailable(
            f"counting steps through a process by Linux's ptrace; this is {sys.platform}"
        )


def build(folder: Path) -> Path:
    """The drivers and their caller, with setup.py's optimisation, unless the program is there.

    A driver is the one that setup.py compiled, where that is newer than all sources: compiling them
    takes minutes.
    """
    patterns = ("csrc/cpu/*.cpp", "csrc/step/*.cpp")
    sources = [source for pattern in patterns for source in sorted(ROOT.glob(pattern))]
    caller = ROOT / "benchmarks" / "instructions.cpp"
    headers = [p for pattern in ("*.h", "*.inc") for p in sorted(ROOT.glob(f"csrc/**/{pattern}"))]
    flags = [
        "-std=c++20",
        "-O3",
        "-g0",
        "-fno-math-errno",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-fPIC",
        "-pthread",
    ]
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in (caller, *sources, *headers):
        digest.update(path.read_bytes())
    program = folder / f"instructions-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    compiler = [os.environ.get("CXX", "g++"), *flags, "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    changed = max(path.stat().st_mtime for path in (*sources, *headers))
    objects_of = {source: BUILT / source.relative_to(ROOT).with_suffix(".o") for source in sources}
    built = [o for o in objects_of.values() if o.exists() and o.stat().st_mtime > changed]
    with tempfile.TemporaryDirectory() as scratch:
        left = [caller, *(s for s in sources if objects_of[s] not in built)]
        objects = [Path(scratch) / f"{i}.o" for i in range(len(left))]
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(_run, [*compiler, "-c", str(source), "-o", str(made)])
                for source, made in zip(left, objects, strict=True)
            ]
            for job in jobs:
                job.result()
        _run([compiler[0], "-pthread", *map(str, objects + built), "-o", str(program)])
    return program


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def instructions(program: Path, level: str, op: str, elements: int) -> int:
    """Instructions that one call of an op executes."""
    counted = int(_run([str(program), level, op, str(elements)]))
    if counted == 0:
        raise RuntimeError(f"nothing was counted for {op} at {level}")
    return counted


def per_element(program: Path, level: str, op: str) -> float:
    """Instructions per element: the difference of two sizes, so that what a call costs cancels."""
    small, large = (instructions(program, level, op, n) for n in SIZES)
    return round((large - small) / (SIZES[1] - SIZES[0]), 4)


def count(ops: Iterable[str] = OPS) -> dict[str, dict[str, float]]:
    """Instructions per element by level and op, at the levels that this machine runs."""
    need()
    program = build(ROOT / "build" / "instructions")
    levels = _run([str(program), "levels"]).split()
    return {level: {op: per_element(program, level, op) for op in ops} for level in levels}


def main() -> int:
    from benchmarks.machine import commit, today

    try:
        found = count()
    except Unavailable as missing:
        print(f"benchmarks.instructions: {missing}", file=sys.stderr)
        return 2
    if set(found) != set(LEVELS):
        runs, all_levels = ", ".join(found), ", ".join(LEVELS)
        print(
            f"benchmarks.instructions: this machine runs {runs}, and the record has {all_levels}: "
            "nothing was written",
            file=sys.stderr,
        )
        return 2
    compiler = subprocess.run(
        [os.environ.get("CXX", "g++"), "--version"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "what": "instructions per element on one thread, counted by stepping through the call",
        "compiler": compiler,
        "commit": commit(),
        "date": today(),
        "per_element": found,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    for op in OPS:
        print(f"{op:42s}" + "".join(f"{level} {found[level][op]:8.3f}   " for level in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
