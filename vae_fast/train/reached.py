"""How far a run is, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Reached:
    """How far a run is. Checkpoints hold it and rows of metrics.jsonl quote it."""

    epoch: int = 0  # whole epochs, validation included
    step: int = 0
    rows: int = 0  # of metrics.jsonl
    samples: int = 0
    seconds: float = 0.0  # spent in training steps, not in validation or checkpoints
    best: float = math.inf  # lowest validation loss so far, at the final beta, nats per sample


@dataclass
class Result:
    """What ``fit`` returns: the last validation's terms in nats per sample, speed and pictures.

    ``diagnostics`` is what the model itself said of the validation data, such as its accuracy.
    """

    loss: float
    recon: float
    kl: float
    samples_per_second: float
    pictures: list[Path] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)
