"""The CUDA kernels' tests on what nvcc made of them: ``python -m tests.ptx [--quick] [ARCH...]``.

For each architecture, sm_75 and sm_90 where none is named, all of ``tests/cuda_emulation`` runs twice:
all warps in lockstep with approximate instructions at their worst, and diverged, each lane as far as it
can get. ``--quick`` is a choice of the tests, for sm_90. Without nvcc it says so and ends well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.cuda_emulation import emulator
from tests.ptx import build

TESTS = "tests/cuda_emulation/"
QUICK = (
    "test_noise.py::test_words_are_the_references_bit_for_bit",
    "test_noise.py::test_normals_are_the_references_to_a_few_ulp[dtype0]",
    "test_gaussian.py::test_forward[(41, 401)-torch.bfloat16]",
    "test_gaussian.py::test_backward[1-(41, 401)-torch.bfloat16]",
    "test_gaussian.py::test_same_bits_in_any_order_and_at_any_alignment",
    "test_gather.py",
    "test_losses.py::test_bernoulli[(41, 401)-torch.float32-logits]",
    "test_losses.py::test_extreme_logits",
    "test_losses.py::test_uint8_is_x_over_255_to_the_last_bit",
    "test_losses.py::test_same_bits_in_any_order_and_at_any_alignment",
    "test_losses.py::test_error_is_at_most_twice_eagers",
    "test_step.py",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.ptx", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="some of the tests, for sm_90")
    parser.add_argument("--jobs", default="0", help="processes that share the tests (pytest -n)")
    parser.add_argument("archs", nargs="*", help="architectures, such as sm_90")
    options = parser.parse_args(arguments)
    if build.nvcc() is None or emulator.compiler() is None:
        print("ptx-check is skipped: it needs nvcc and a C++ compiler, and one of them is missing.")
        return 0
    archs = options.archs or (["sm_90"] if options.quick else ["sm_75", "sm_90"])
    tests = [TESTS + t for t in QUICK] if options.quick else [TESTS]
    status = 0
    for arch in archs:
        build.library(arch)  # before the processes that share it
        for way in ["", ",lockstep,worst"]:
            print(f"--- {arch}, {'in lockstep' if way else 'diverged'}", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", "-n", options.jobs, *tests]
            env = {**os.environ, "VAE_FAST_PTX": arch + way}
            status |= subprocess.run(
                [*command, "--dist", "loadfile"], env=env, check=False
            ).returncode
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
