"""Evaluating a run: its model on its validation data, reported beside its metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast.evaluate.report import evaluate


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | int = "best",
    data: str | None = None,
    samples: int | None = None,
    num_samples: int = 100,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """``evaluate`` on the run's validation data, also written to the run's evaluation.json.

    Args:
        run: the folder that ``vae-fast train`` made. checkpoint: best, last or a step.
        data: a data set's name or file instead; then nothing is written.
        samples: how many of the first samples to look at; all if None.
        num_samples: K of the importance-sampled NLL; 0 leaves it out.
    """
    from vae_fast import data as datasets
    from vae_fast.tasks import load_model

    restored = load_model(run, checkpoint, device)
    source = restored.config.data if data is None else data
    loaded = datasets.load(source, split="val") if data is None else datasets.as_data(source)
    x, y = gather(loaded, samples)
    expected = tuple(restored.model.input_shape)
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"{source} has samples of shape {tuple(x.shape[1:])}, the model takes {expected}"
        )
    report = {
        "model": restored.config.model,
        "data": str(source),
        "step": restored.step,
        **evaluate(restored.model, x, y, num_samples=num_samples, seed=seed),
    }
    if data is None:
        path = Path(run) / "evaluation.json"
        beside = path.with_suffix(".json.tmp")
        beside.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(beside, path)
    return report


def gather(data: Any, samples: int | None = None) -> tuple[Tensor, Tensor | None]:
    """The first ``samples`` samples of data, and their labels if all have one."""
    from vae_fast.data import Batches

    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    images, labels, found = [], [], 0
    for batch in Batches(data, 512, shuffle=False):
        images.append(batch.images)
        labels.append(batch.labels)
        found += len(batch.images)
        if samples is not None and found >= samples:
            break
    known = all(part is not None for part in labels)
    x = torch.cat(images)[:samples]
    return x, torch.cat(labels)[:samples] if known else None


def as_text(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    width = max(map(len, report))
    lines = []
    for key, value in report.items():
        if isinstance(value, float):
            value = f"{value:.4f}"
        elif isinstance(value, list):
            value = " ".join(f"{v:.2f}" for v in value[:20]) + (" ..." if len(value) > 20 else "")
        lines.append(f"{key:{width}s}  {value}")
    return "\n".join(lines)
