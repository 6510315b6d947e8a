"""From a row to be to a case: every ``bench_*.py`` names its set-ups, and this finds them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.case import Absent, Case
from benchmarks.suites import Spec


def setups() -> dict[str, Callable[..., Case]]:
    """``setup_`` functions by op, of all families."""
    found: dict[str, Callable[..., Case]] = {}
    for file in sorted(Path(__file__).parent.glob("bench_*.py")):
        found.update(importlib.import_module(f"benchmarks.{file.stem}").SETUPS)
    return found


def make(spec: Spec, device: torch.device, modes: Sequence[str]) -> Case:
    """The case of a row to be. Raises Absent for an op that has no benchmark, or is not built."""
    known = setups()
    if spec.op not in known:
        raise Absent(f"there is no benchmark of {spec.op}")
    setup = known[spec.op]
    extra = {"target": spec.target} if "target" in inspect.signature(setup).parameters else {}
    return setup(spec.shape, spec.pass_, spec.dtype, device, modes, **extra)
