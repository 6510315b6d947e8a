"""Kernels broken on purpose, which the tests have to find in their PTX.
``python -m tests.ptx.mutations [NUMBER...]`` runs all, or those of these numbers, from 1 on.

Each mutation changes one place in a copy of the sources; the tests named beside it then run on the PTX
of the copy, and one of them has to fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    what: str
    file: str  # in csrc
    before: str
    after: str
    test: str  # in tests/cuda_emulation
    way: str = ""


FORWARD = "test_gaussian.py::test_forward"
BACKWARD = "test_gaussian.py::test_backward[1-(41, 401)-torch.float32]"

MUTATIONS = (
    Mutation(
        "no barrier before the warps' sums are read",
        "cuda/reduce.cuh",
        "if (lane == 0) sums[warp] = x;\n  __syncthreads();",
        "if (lane == 0) sums[warp] = x;",
        f"{FORWARD}[(2, 9001)-torch.float32]",
    ),
    Mutation(
        "the last block reads without the others' fence",
        "cuda/finish.cuh",
        "    __threadfence();\n    last =",
        "    last =",
        f"{FORWARD}[(2, 9001)-torch.float32]",
    ),
    Mutation(
        "a batch at a range's end is read as a whole",
        "cuda/memory.cuh",
        "whole = aligned && start(0) >= begin && start(U - 1) + V <= end;",
        "whole = aligned && start(0) >= begin;",
        f"{FORWARD}[(3, 5)-torch.float32]",
    ),
    Mutation(
        "alignment is taken for granted",
        "cuda/memory.cuh",
        "whole = aligned && start(0) >= begin && start(U - 1) + V <= end;",
        "whole = start(0) >= begin && start(U - 1) + V <= end;",
        "test_gaussian.py::test_same_bits_in_any_order_and_at_any_alignment[sum]",
    ),
    Mutation(
        "the noise's shift within a counter is wrong",
        "cuda/noise.cuh",
        "shift == 2 ? all[k + 2]",
        "shift == 2 ? all[k + 1]",
        "test_noise.py::test_sample_sets_continue_the_noise_where_4_does_not_divide_them",
    ),
    Mutation(
        "a Philox constant is off by two",
        "math/philox.h",
        "0xCD9E8D57u",
        "0xCD9E8D59u",
        "test_noise.py::test_words_are_the_references_bit_for_bit",
    ),
    Mutation(
        "a row's upstream gradient is row 0's",
        "cuda/upstream.cuh",
        "up.per_row ? row : 0",
        "0",
        BACKWARD,
    ),
    Mutation(
        "tasks overlap by a group",
        "cuda/split.cuh",
        "end = (first + groups) * V;",
        "end = (first + groups + 1) * V;",
        f"{FORWARD}[(2, 9001)-torch.float32]",
    ),
    Mutation(
        "memory that this launch writes is read through the read-only cache",
        "cuda/finish.cuh",
        "__ldcg(s.partials",
        "__ldg(s.partials",
        f"{FORWARD}[(2, 9001)-torch.float32]",
    ),
    Mutation(
        "the sine's sign is that of the other quadrant",
        "math/normal.h",
        "second = radius * M::negate_if(quadrant & 2u, y);",
        "second = radius * M::negate_if((quadrant + 1u) & 2u, y);",
        "test_noise.py::test_normals_are_the_references_to_a_few_ulp[dtype0]",
    ),
)


def copy_of_the_sources(folder: Path) -> None:
    for name in ("csrc", "tests", "vae_fast"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    # The tests are of sampling and its noise: the likelihoods' kernels need no compiling.
    for part in range(4):
        (folder / "csrc" / "cuda" / f"likelihood_part_{part}.cu").write_text(
            f'#include "cuda/likelihood.cuh"\nnamespace vae_fast::cuda {{\ntemplate <>\n'
            f"Kernels kernels_in_part<{part}>(int) {{ return {{}}; }}\n}}\n"
        )
    compiled = ROOT / "build" / "ptx" / "sm_90"  # of files that no mutation changes
    if compiled.is_dir():
        shutil.copytree(compiled, folder / "build" / "ptx" / "sm_90")


def run(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests pass with the mutation."""
    path = folder / "csrc" / mutation.file
    text = path.read_text()
    if text.count(mutation.before) != 1:
        sys.exit(f"{mutation.file} has {text.count(mutation.before)} times: {mutation.before}")
    path.write_text(text.replace(mutation.before, mutation.after))
    env = {**os.environ, "VAE_FAST_PTX": f"sm_90{mutation.way}", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, f"tests/cuda_emulation/{mutation.test}"],
        cwd=folder, env=env, check=False, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith("E  ")]
    if result.returncode not in (0, 1) or (result.returncode == 1 and not lines):
        sys.exit(f"the tests could not run:\n{result.stdout[-3000:]}{result.stderr[-2000:]}")
    path.write_text(text)
    found = lines[0][1:].strip() if lines else "no test fails"
    print(f"{'found' if lines else 'MISSED'}: {mutation.what}: {found}", flush=True)
    return result.returncode == 0


def main(numbers: list[str]) -> int:
    chosen = [MUTATIONS[int(n) - 1] for n in numbers] or MUTATIONS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "copy")
        folder.mkdir()
        copy_of_the_sources(folder)
        unfound = [m.what for m in chosen if run(m, folder)]
    print(f"{len(chosen) - len(unfound)} of {len(chosen)} mutations make a test fail")
    return 1 if unfound else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
