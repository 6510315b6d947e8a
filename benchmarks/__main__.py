"""python -m benchmarks: measure, check and print one table.

Contenders are timed in turns within one run, on the same inputs, each after its result was found
equal to float64's. Ratios are a peer's median time over ours: above 1 we are faster.
"""

from __future__ import annotations

import os

# Before torch: its profiler, which counts the memory, writes a line for each use otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# JAX would take three quarters of a GPU's memory for itself at its first use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import machine, report, requirements, suites, table
from benchmarks.bandwidth import measure_bandwidth
from benchmarks.case import OURS, Absent
from benchmarks.measure import measure_case
from benchmarks.peers import COMPILE_MODES, CUDA_GRAPHS
from benchmarks.registry import make
from benchmarks.results import FORMAT, Results, load, merge, save
from benchmarks.suites import Spec
from benchmarks.timing import Budget


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--suite", choices=suites.SUITES, default="standard",
        help="standard: every op at three shapes, training and large (the default)\n"
        "sizes: 2^10 to 2^27 elements and the shapes people use\n"
        "training: a step and an epoch of the tutorial's VAE\n"
        "large: a step of each autoencoder in examples/\n"
        "must-show: what the project requires of itself, required beside measured\n"
        "all: all of these",
    )  # fmt: skip
    parser.add_argument(
        "--group", action="append", choices=sorted(requirements.GROUPS),
        help="of must-show: only these requirements (may be given several times)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="shorter, and less sure")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", default="", help="rows whose key contains this, as bce_kl/both")
    parser.add_argument("--peers", default="", help="peers to keep, as eager,compile,jax")
    parser.add_argument("--out", type=Path, help="folder for results.json, report.md and pictures")
    parser.add_argument("--json", type=Path, help="file for the results alone")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE",
        help="results of another run on this machine, as under another torch:\n"
        "for each peer the better of the two counts",
    )  # fmt: skip
    return parser.parse_args(arguments)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, and torch sees no GPU: use --device cpu")
    return torch.device(name)


def plan(options: argparse.Namespace) -> list[Spec]:
    """The rows of the suite asked for."""
    suite, specs = options.suite, []
    if suite in ("standard", "all"):
        specs += suites.standard()
    if suite in ("sizes", "all"):
        specs += suites.sizes(options.quick)
    if suite in ("standard", "training", "all"):
        specs += suites.training()
    if suite in ("standard", "large", "all"):
        specs += suites.large()
    if suite in ("must-show", "all"):
        specs += requirements.specs(wanted(options))
    specs = [s for s in dict.fromkeys(specs) if options.only in requirements.key_of(s)]
    if not specs:
        raise ValueError(f"no row of suite {suite} has {options.only!r} in its key")
    return specs


def wanted(options: argparse.Namespace) -> tuple[requirements.Requirement, ...]:
    """The requirements asked for, by group and by their rows' keys."""
    groups = options.group or list(requirements.GROUPS)
    return tuple(
        r
        for name in groups
        for r in requirements.GROUPS[name]
        if any(options.only in requirements.key_of(spec) for spec in r.specs)
    )


def keep(options: argparse.Namespace, modes: list[str]):
    """Which contenders take part, by name."""
    if options.peers:
        names = {*options.peers.split(","), "add(out=)"}
        return lambda name: name.startswith(OURS) or name in names
    if options.suite == "must-show":
        asked = {r.peer for r in wanted(options)}
        asked |= set(modes) if "compile" in asked else set()
        asked |= {"jax-float32"} if "jax" in asked else set()
        return lambda name: name.startswith(OURS) or name in asked
    return lambda name: True


def run(options: argparse.Namespace) -> Results:
    device = pick_device(options.device)
    specs = plan(options)
    other = load(options.compare) if options.compare else None
    budget = Budget.quick() if options.quick else Budget()
    modes = [*COMPILE_MODES, *(CUDA_GRAPHS if device.type == "cuda" else ())]
    if options.quick or options.suite not in ("sizes", "all"):
        modes.remove("compile-max-autotune")  # it takes minutes to tune, where there is a GPU
    took_part = keep(options, modes)

    results: Results = {
        "format": FORMAT,
        "suite": options.suite,
        "quick": options.quick,
        "device": device.type,
        "machine": machine.describe(device),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "date": machine.today(),
        "bandwidth": measure_bandwidth(device, budget),
        "rows": [],
        "missing": {},
    }
    for number, spec in enumerate(specs, start=1):
        key, began = requirements.key_of(spec), time.perf_counter()
        terminal = sys.stderr.isatty()

        def say(text: str, number: int = number, key: str = key, terminal: bool = terminal) -> None:
            if terminal:
                print(f"\r\033[K[{number}/{len(specs)}] {key}: {text}", end="", file=sys.stderr)

        # Each row compiles its own, once: no shape is traced as a variant of an earlier one.
        torch._dynamo.reset()
        try:
            row = measure_case(make(spec, device, modes), budget, took_part, say)
        except Absent as absent:
            results["missing"][key] = str(absent)
            continue
        results["rows"].append(row)
        if terminal:
            print("\r\033[K", end="", file=sys.stderr)
        took = time.perf_counter() - began
        print(f"[{number}/{len(specs)}] {key}: {took:.0f} s", file=sys.stderr, flush=True)
        if options.json:
            save(results, options.json)  # so that an hour's run that is stopped leaves something
    return merge(results, other) if other else results


def show(results: Results, options: argparse.Namespace) -> bool:
    """Print the tables; whether our own results were right."""
    print(table.heading(results), end="\n\n")
    print(table.rows_table(results))
    if options.suite in ("must-show", "all"):
        print()
        print(table.requirements_table(requirements.judge(wanted(options), results)))
    for line in table.left_out(results):
        print(line)
    return not any(
        "refused" in entry
        for row in results["rows"]
        for name, entry in row["results"].items()
        if name.startswith(OURS)
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for path in (options.out, options.json and options.json.parent):
        if path:
            path.mkdir(parents=True, exist_ok=True)
    try:
        results = run(options)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    right = show(results, options)
    if options.json:
        save(results, options.json)
    if options.out:
        save(results, options.out / "results.json")
        report.write(results, options.out)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
