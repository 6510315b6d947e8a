"""A run's progress and result, and the check of a checkpoint's state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vae_fast.train.config_changes import check_plain
from vae_fast.train.manifest import CheckpointError


@dataclass
class Progress:
    """How far a run is. Checkpoints save it, and rows of metrics.jsonl contain parts of it."""

    epoch: int = 0  # whole epochs, validation included
    step: int = 0
    rows: int = 0  # of metrics.jsonl
    samples: int = 0
    seconds: float = 0.0  # spent in training steps, not in validation or checkpoints
    best: float = math.inf  # lowest validation loss so far, at the final beta, nats per sample
    # Checkpoints from before 2026-11-30 lack these:
    stale: int = 0  # validations since the best one
    validated: int = 0  # the step of the last validation


@dataclass
class Result:
    """The result of ``fit``: the last validation's terms in nats per sample, speed and pictures.

    ``diagnostics`` are the model's own measures on the validation data, such as accuracy.
    """

    loss: float
    recon: float
    kl: float
    samples_per_second: float
    pictures: list[Path] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)


def check_state(state: dict[str, Any]) -> None:
    """Raise CheckpointError unless names and types are those of ``Trainer.state``."""
    names = {f.name for f in fields(Progress)}
    reached = state.get("reached")
    ranks = state.get("ranks")
    faults = {
        "reached": not (
            isinstance(reached, dict)
            and set(reached) | {"stale", "validated"} == names
            and all(_is_count(reached[name]) for name in set(reached) - {"seconds", "best"})
            and _is_number(reached["seconds"])
            and (_is_number(reached["best"]) or reached["best"] == math.inf)
        ),
        "input_shape": not (
            isinstance(state.get("input_shape"), list)
            and state["input_shape"]
            and all(_is_count(n) for n in state["input_shape"])
        ),
        "interval_seconds": not _is_number(state.get("interval_seconds")),
        "is_best": not isinstance(state.get("is_best"), bool),
        "step": not _has(state.get("step"), updates=list),
        "batches": not _has(state.get("batches"), epoch=int, batch=int),
        "ranks": not (
            isinstance(ranks, list)
            and len(ranks) > 0
            and all(_has(rank, rng=dict, meter=dict) for rank in ranks)
        ),
    }
    if "config" in state:  # checkpoints of version 2 have none
        check_plain(state["config"])
    if wrong := [name for name, fault in faults.items() if fault]:
        raise CheckpointError(f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not valid")


def _has(value: Any, **kinds: type) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in kinds.items()
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf  # which NaN is not
