"""Measure one row: make the inputs, check every contender, then time the correct ones in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.case import OURS, Absence, Case, Contender, WrongResult
from benchmarks.inputs import last_level_cache, sets_to_rotate
from benchmarks.memory import peak_bytes
from benchmarks.timing import Budget, measure

Row = dict[str, Any]


def measure_case(
    case: Case,
    budget: Budget,
    only: Callable[[str], bool] = lambda name: True,
    say: Callable[[str], None] = lambda text: None,
) -> Row:
    """Measure a case and return its row of the results.

    Args:
        only: which contenders take part, by name.
        say: called with what is being done.
    """
    results: dict[str, dict[str, Any]] = {}
    present: list[Contender] = []
    say("preparing")
    for contender in case.contenders():
        if not only(contender.name):
            continue
        if isinstance(contender, Absence):
            results[contender.name] = {"absent": contender.why}
        else:
            present.append(contender)

    first = list(case.inputs(0))
    set_bytes = sum(t.nbytes for t in first)
    sets, cached = sets_to_rotate(set_bytes, last_level_cache(case.device))
    if case.sets is not None:
        sets, cached = case.sets, False
    inputs = [first, *(list(case.inputs(seed)) for seed in range(1, sets))]

    own: dict[str, list[Any]] = {}
    right: list[Contender] = []
    for contender in present:
        say(f"checking {contender.name}")
        try:
            own[contender.name] = [contender.own(s) for s in inputs]
            check(case, contender, first, own[contender.name][0])
        except WrongResult as error:
            results[contender.name] = {"refused": str(error)}
            continue
        except Exception as error:  # a failing peer must not lose the others' results
            if contender.name == OURS and not isinstance(error, torch.OutOfMemoryError):
                raise
            results[contender.name] = {"failed": one_line(error)}
            continue
        right.append(contender)

    say("timing")
    timings = measure(right, own, case.device, budget)
    for contender in right:
        entry: dict[str, Any] = dataclasses.asdict(timings[contender.name])
        if contender.bytes is not None:
            entry["bytes"] = contender.bytes
        if case.memory:
            entry["peak_bytes"] = peak_bytes(contender, own[contender.name][0], case.device)
        results[contender.name] = entry

    return {
        "key": case.key,
        "op": case.op,
        "pass": case.pass_,
        "shape": case.shape,
        "dtype": case.dtype,
        "target": case.target,
        "elements": case.elements,
        "samples": case.samples,
        "bytes": case.bytes,
        "sets": sets,
        "set_bytes": set_bytes,
        "in_cache": cached,
        "note": case.note,
        "results": results,
    }


def check(case: Case, contender: Contender, inputs: Sequence[torch.Tensor], own: Any) -> None:
    """Raise WrongResult unless the contender's result agrees with float64."""
    state = own if contender.prepare is None else contender.prepare(own)
    out = contender.run(state)
    if contender.outputs is not None:
        case.check(inputs, contender.outputs(out))


def one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]
