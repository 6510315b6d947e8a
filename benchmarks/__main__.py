"""python -m benchmarks: measure, check and print one table.

Contenders are timed in turns within one run, on the same inputs, after each result was compared
with float64. A ratio is a peer's median time over ours: above 1 we are faster.
"""

from __future__ import annotations

import os

# Set before importing torch: its profiler, which counts memory, otherwise writes a line per use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# JAX would reserve three quarters of a GPU's memory at its first use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import change, machine, report, requirements, suites, table
from benchmarks.bandwidth import measure_bandwidth
from benchmarks.case import OURS, Absent
from benchmarks.measure import measure_case
from benchmarks.peers import COMPILE_MODES, CUDA_GRAPHS
from benchmarks.registry import known_peers, make
from benchmarks.results import FORMAT, Results, load, merge, save
from benchmarks.suites import Spec
from benchmarks.timing import Budget

EXAMPLE = "bce_kl_loss/both"
# torch.compile warns in each row where there is a CUDA toolkit and no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


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
        "models: a step of every model that pythae has too\n"
        "all: all of these\n"
        "must-show: the project's own requirements, required and measured",
    )  # fmt: skip
    parser.add_argument(
        "--group", action="append", choices=sorted(requirements.GROUPS),
        help="of must-show: only these requirements (may be given several times)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="shorter and less precise; of standard: seven rows, about two minutes",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", default="", help=f"rows whose key contains this, as {EXAMPLE}")
    parser.add_argument("--list", action="store_true", help="print the suite's keys and stop")
    parser.add_argument("--peers", default="", help="peers to keep, as eager,compile,jax")
    parser.add_argument(
        "--out", type=Path, help="folder for results.json and .csv, report.md, pictures"
    )
    parser.add_argument("--json", type=Path, help="file for the results alone")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE",
        help="results of another run on this machine, as under another torch:\n"
        "for each peer the better of the two counts",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="FILE",
        help="an earlier run's results, or its folder: say what changed since, in percent,\n"
        "and whether that is more than noise",
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
    if suite == "standard" and options.quick and not options.only:
        return suites.standard(quick=True)
    if suite in ("standard", "all"):
        specs += suites.standard()
    if suite in ("sizes", "all"):
        specs += suites.sizes(options.quick)
    if suite in ("standard", "training", "all"):
        specs += suites.training()
    if suite in ("standard", "large", "all"):
        specs += suites.large()
    if suite in ("models", "all"):
        specs += suites.models()
    if suite == "must-show":
        specs += requirements.specs(wanted(options))
    specs = list(dict.fromkeys(specs))
    picked = [s for s in specs if options.only in requirements.key_of(s)]
    if not picked:
        keys = "".join(f"\n  {requirements.key_of(s)}" for s in specs)
        raise ValueError(f"no row of suite {suite} has {options.only!r} in its key; it has{keys}")
    return picked


def wanted(options: argparse.Namespace) -> tuple[requirements.Requirement, ...]:
    """The requirements asked for, by group and by their rows' keys."""
    groups = options.group or [g for g in requirements.GROUPS if g != "gpu"]
    return tuple(
        r
        for name in groups
        for r in requirements.GROUPS[name]
        if any(options.only in requirements.key_of(spec) for spec in r.specs)
    )


def keep(options: argparse.Namespace, modes: list[str]) -> Callable[[str], bool]:
    """The contenders to include, by name; ValueError for a peer that no row has."""
    if options.peers:
        asked = {name.strip() for name in options.peers.split(",")}
        if unknown := sorted(asked - known_peers()):
            raise ValueError(
                f"no row has a peer {', '.join(map(repr, unknown))}; "
                f"the peers are {', '.join(sorted(known_peers()))}"
            )
        return lambda name: name.startswith(OURS) or name in {*asked, "add(out=)"}
    if options.suite == "must-show":
        asked = {r.peer for r in wanted(options)}
        asked |= set(modes) if "compile" in asked else set()
        asked |= {"jax-float32"} if "jax" in asked else set()
        return lambda name: name.startswith(OURS) or name in asked
    return lambda name: True


class Run:
    """A run of the benchmarks. An impossible run is refused here. ``results`` has every finished
    row."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = pick_device(options.device)
        self.specs = plan(options)
        self.modes = [*COMPILE_MODES, *(CUDA_GRAPHS if self.device.type == "cuda" else ())]
        if options.quick or options.suite not in ("sizes", "all"):
            self.modes.remove("compile-max-autotune")  # it takes minutes to tune on a GPU
        self.took_part = keep(options, self.modes)
        machine.need_kernels(self.device)
        self.budget = Budget.quick() if options.quick else Budget()
        self.results: Results = {
            "format": FORMAT,
            "suite": options.suite,
            "quick": options.quick,
            "device": self.device.type,
            "machine": machine.describe(self.device),
            "versions": machine.versions(),
            "commit": machine.commit(),
            "date": machine.today(),
            "bandwidth": {},
            "rows": [],
            "missing": {},
        }
        self.other = load(options.compare) if options.compare else None
        if self.other:
            merge(self.results, self.other)  # raises where the runs don't compare
        self.before = load(options.against) if options.against else None

    def measure(self) -> None:
        terminal, count = sys.stderr.isatty(), len(self.specs)
        print(f"{count} rows; {'a row takes' if count > 1 else 'it takes'} 10 s to a minute, "
              "most of it torch.compile. First the memory's bandwidth",
              file=sys.stderr, flush=True)  # fmt: skip
        self.results["bandwidth"] = measure_bandwidth(self.device, self.budget)
        started = time.perf_counter()
        for number, spec in enumerate(self.specs, start=1):
            key, began = requirements.key_of(spec), time.perf_counter()
            row = f"[{number}/{count}] {key}"

            def say(text: str, row: str = row) -> None:
                if terminal:
                    print(f"\r\033[K{row}: {text}", end="", file=sys.stderr)

            # Each row compiles separately, so that no shape is traced as a variant of an earlier
            # one.
            torch._dynamo.reset()
            try:
                case = make(spec, self.device, self.modes)
                self.results["rows"].append(measure_case(case, self.budget, self.took_part, say))
            except Absent as absent:
                self.results["missing"][key] = str(absent)
                continue
            if terminal:
                print("\r\033[K", end="", file=sys.stderr)
            ended = time.perf_counter()
            left = (ended - started) / number * (count - number)
            more = f", about {duration(left)} left" if number < count else ""
            print(f"{row}: {ended - began:.0f} s{more}", file=sys.stderr, flush=True)
            self.save()  # finished rows are saved however the run ends

    def save(self) -> None:
        files = [self.options.json, self.options.out and self.options.out / "results.json"]
        for path in filter(None, files):
            save(self.results, path)

    def finish(self) -> bool:
        """Join the other run, print and save what was measured; whether our results were right."""
        known = {row["key"] for row in self.results["rows"]} | set(self.results["missing"])
        for key in map(requirements.key_of, self.specs):
            if key not in known:
                self.results["missing"][key] = "the run was stopped before this row was finished"
        if self.other:
            self.results = merge(self.results, self.other)
        right = show(self.results, self.options)
        if self.before:
            try:
                print(f"\n{change.changes(self.before, self.results)}")
            except ValueError as error:
                print(f"\n{self.options.against}: {error}")
        self.save()
        if self.options.out and self.results["rows"]:
            report.write(self.results, self.options.out)
        return right


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show(results: Results, options: argparse.Namespace) -> bool:
    """Print the tables; whether our own results were right."""
    print(table.heading(results), end="\n\n")
    print(table.rows_table(results))
    if options.suite == "must-show":
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
    try:
        if options.list:
            print("\n".join(map(requirements.key_of, plan(options))))
            return 0
        run = Run(options)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    for folder in (options.out, options.json and options.json.parent):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    try:
        run.measure()
    except BaseException as error:
        print(f"\nbenchmarks: stopped by {type(error).__name__}", file=sys.stderr)
        run.finish()
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    return 0 if run.finish() else 1


if __name__ == "__main__":
    # A terminated run ends as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
