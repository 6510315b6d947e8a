"""Instructions per element of every CPU op, counted by callgrind: a regression shows, whatever the
machine is doing. ``python -m benchmarks.instructions`` writes results/instructions.json.

Each op's driver runs on one thread at two sizes, and the difference is what its elements cost. It
needs a C++ compiler and valgrind with its headers. Valgrind (3.19) knows AVX2 and not AVX-512: the
level that most servers run is not counted here. Its source is the same
as AVX2's at twice the width.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "instructions.json"
LEVELS = ("generic", "avx2")
# Multiples of every block and vector, so that tails take no part.
SIZES = (1 << 15, 1 << 16)

_DTYPES = ("float32", "bfloat16", "float16")
OPS = (
    *(f"{op}/{pass_}/{dtype}"
      for op in ("reparameterize", "gaussian_kl", "sample_and_kl")
      for pass_ in ("value", "gradient")
      for dtype in _DTYPES),
    *(f"bernoulli_nll/{pass_}/{dtype}"
      for pass_ in ("value", "gradient", "both")
      for dtype in (*_DTYPES, "float32/uint8", "bfloat16/uint8")),
    "bernoulli_nll/both/float32/probability",
    *(f"bce_kl_loss/both/{dtype}" for dtype in ("float32", "bfloat16", "bfloat16/uint8")),
)  # fmt: skip


class Unavailable(RuntimeError):
    """What counting needs is not on this machine."""


def need() -> None:
    """Raise Unavailable, with what to install, unless instructions can be counted here."""
    compiler = os.environ.get("CXX", "g++")
    for program, how in ((compiler, "install a C++ compiler"), ("valgrind", "install valgrind")):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not on PATH: {how}")


def build(folder: Path) -> Path:
    """Compile the drivers and their caller, with setup.py's optimisation, unless it is done."""
    sources = [ROOT / "benchmarks" / "instructions.cpp", *sorted(ROOT.glob("csrc/cpu/*.cpp"))]
    headers = [p for pattern in ("*.h", "*.inc") for p in sorted(ROOT.glob(f"csrc/**/{pattern}"))]
    flags = [
        "-std=c++20",
        "-O3",
        "-g0",
        "-fno-math-errno",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-pthread",
    ]
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    program = folder / f"instructions-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    compiler = [os.environ.get("CXX", "g++"), *flags, "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    with tempfile.TemporaryDirectory() as scratch:
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(_run, [*compiler, "-c", str(source), "-o", str(made)])
                for source, made in zip(sources, objects, strict=True)
            ]
            for job in jobs:
                job.result()
        _run([compiler[0], "-pthread", *map(str, objects), "-o", str(program)])
    return program


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stderr


def instructions(program: Path, level: str, op: str, elements: int) -> int:
    """Instructions that one call of an op executes."""
    said = _run(
        [
            "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
            "--collect-atstart=no", str(program), level, op, str(elements),
        ]
    )  # fmt: skip
    found = re.search(r"Collected\s*:\s*(\d+)", said)
    if found is None or int(found[1]) == 0:
        raise RuntimeError(f"callgrind counted nothing for {op} at {level}:\n{said}")
    return int(found[1])


def per_element(program: Path, level: str, op: str) -> float:
    """Instructions per element: the difference of two sizes, so that what a call costs cancels."""
    small, large = (instructions(program, level, op, n) for n in SIZES)
    return round((large - small) / (SIZES[1] - SIZES[0]), 4)


def count(levels: Iterable[str] = LEVELS, ops: Iterable[str] = OPS) -> dict[str, dict[str, float]]:
    """Instructions per element by level and op."""
    need()
    program = build(ROOT / "build" / "instructions")
    return {level: {op: per_element(program, level, op) for op in ops} for level in levels}


def main() -> int:
    from benchmarks.machine import commit, today

    try:
        found = count()
    except Unavailable as missing:
        print(f"benchmarks.instructions: {missing}", file=sys.stderr)
        return 2
    compiler = subprocess.run(
        [os.environ.get("CXX", "g++"), "--version"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "what": "instructions per element on one thread, by callgrind; AVX-512 is not counted, "
        "for valgrind does not know it",
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
