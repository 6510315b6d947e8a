"""Make cases from row specifications: this finds the set-ups of every ``bench_*.py``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.case import OURS, Absent, Case
from benchmarks.peers import COMPILE_MODES, CUDA_GRAPHS
from benchmarks.suites import Spec


def families() -> list[ModuleType]:
    """The ``bench_*.py`` modules."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return [importlib.import_module(f"benchmarks.{file.stem}") for file in files]


def setups() -> dict[str, Callable[..., Case]]:
    """``setup_`` functions by op, of all families."""
    return {op: setup for family in families() for op, setup in family.SETUPS.items()}


def known_peers() -> set[str]:
    """The possible values of ``--peers``: the contenders of all rows except ours."""
    names = {name for family in families() for name in family.NAMES}
    return {n for n in names if not n.startswith(OURS)} | {*COMPILE_MODES, *CUDA_GRAPHS}


def make(spec: Spec, device: torch.device, modes: Sequence[str]) -> Case:
    """The case of a row. Raises Absent for an op without a benchmark, or one that is not built."""
    known = setups()
    if spec.op not in known:
        raise Absent(f"there is no benchmark of {spec.op}")
    setup = known[spec.op]
    extra = {"target": spec.target} if "target" in inspect.signature(setup).parameters else {}
    return setup(spec.shape, spec.pass_, spec.dtype, device, modes, **extra)
