"""The engine: one model, one data set, one loop, read from top to bottom.

Batches stay uint8 and go straight to the loss; the loss's terms stay on the device and are read
once per log interval. What a run leaves behind is in ``run_folder``, how it is kept safe in
``checkpoint``.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vae_fast import data as datasets
from vae_fast.train import checkpoint, rng
from vae_fast.train.config import TrainConfig, resolve_device
from vae_fast.train.extras import need
from vae_fast.train.meter import Meter
from vae_fast.train.progress import Progress
from vae_fast.train.run_folder import RunFolder
from vae_fast.train.setup import build_model, load_data
from vae_fast.train.showcase import write_pictures
from vae_fast.train.step import Step

# Looked for before the first step: a run must not fail at its end for want of a library.
NEEDED = (
    ("yaml", "writing a run's config.yaml"),
    ("safetensors.torch", "writing checkpoints"),
    ("matplotlib", "drawing curves.png"),
    ("PIL", "drawing pictures"),
)


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what to try."""


@dataclass
class Reached:
    """How far a run is. Checkpoints hold it and rows of metrics.jsonl quote it."""

    epoch: int = 0  # whole epochs
    step: int = 0
    samples: int = 0
    seconds: float = 0.0  # spent in training steps, not in validation or checkpoints
    best: float = math.inf  # lowest validation loss so far, nats per sample


@dataclass
class Result:
    """What ``fit`` returns: the last validation's terms in nats per sample, speed and pictures."""

    loss: float
    recon: float
    kl: float
    samples_per_second: float
    pictures: list[Path] = field(default_factory=list)


class Trainer:
    """Trains ``config.model`` on ``config.data`` into the run folder ``config.out``.

    >>> Trainer(TrainConfig(model="vae", data="fashion10k", epochs=10, out="runs/first")).fit()

    Args:
        config: the run; a value that can't work raises ValueError here, before any work.
        train_data, val_data: instead of ``config.data``, anything that ``vae_fast.data.as_data``
            takes; both or neither.
        folder: the folder of a run to go on with, instead of a new one.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        train_data: Any = None,
        val_data: Any = None,
        folder: RunFolder | None = None,
    ) -> None:
        config.check()
        for module, purpose in NEEDED:
            need(module, purpose)
        if folder is None:
            RunFolder.check_free(config)
        self.config = config
        self.device = resolve_device(config.device)
        train, val = load_data(config, train_data, val_data)

        torch.manual_seed(config.seed)
        self.model = build_model(config, train.shape).to(self.device)
        self.step = Step(self.model, config, self.device)

        def batches(data: Any, shuffle: bool) -> datasets.Batches:
            return datasets.Batches(
                data, config.batch_size, shuffle=shuffle, seed=config.seed, device=self.device
            )

        self.batches = batches(train, shuffle=True)
        self.val_batches = batches(val, shuffle=False)
        self.reached = Reached()
        self.steps = config.epochs * len(self.batches)
        self.folder = RunFolder.create(config) if folder is None else folder
        self.folder.record_environment(config, self.device)

    # --- the main loop ---------------------------------------------------------------------------

    def fit(self) -> Result:
        """Train to the end of the last epoch, validating and checkpointing after each."""
        config, reached = self.config, self.reached
        self.progress = Progress(reached.step, self.steps)
        self.interval_began = time.perf_counter()
        try:
            for epoch in range(reached.epoch, config.epochs):
                self.batches.set_epoch(epoch)
                self.model.train()
                for batch in self.batches:
                    self.step(batch)
                    reached.step += 1
                    if reached.step % config.log_every == 0:
                        self.log_training()
                self.log_training()
                reached.epoch += 1
                terms = self.validate()
                self.save(terms)
                self.interval_began = time.perf_counter()
        finally:
            self.progress.close()
        drawn = write_pictures(self)
        return Result(**terms, samples_per_second=reached.samples / reached.seconds, pictures=drawn)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The training objective over the validation data, with the same noise every time."""
        self.model.eval()
        meter, began = Meter(self.device), time.perf_counter()
        with rng.forked(self.config.seed, self.device):
            for batch in self.val_batches:
                meter.add(self.step.objective(batch), len(batch.images))
        samples, means = meter.samples, meter.read()
        self.log("val", means, samples / (time.perf_counter() - began))
        return means

    # --- what the loop calls ---------------------------------------------------------------------

    def log_training(self) -> None:
        """Write a row for the steps since the last one; this is where the device is waited for."""
        samples = self.step.meter.samples
        if samples == 0:
            return
        means, now = self.step.meter.read(), time.perf_counter()
        seconds, self.interval_began = now - self.interval_began, now
        self.reached.seconds += seconds
        self.reached.samples += samples
        self.log("train", means, samples / seconds)
        if not math.isfinite(means["loss"]):
            raise TrainingError(
                f"the training loss became {means['loss']} within the {self.config.log_every} "
                f"steps up to step {self.reached.step}: try a lower --lr (it is {self.config.lr:g})"
            )

    def log(self, split: str, means: dict[str, float], samples_per_second: float) -> None:
        row = {
            "epoch": min(self.reached.epoch + (split == "train"), self.config.epochs),
            "step": self.reached.step,
            "split": split,
            **means,
            "seconds": round(self.reached.seconds, 4),
            "samples_per_second": round(samples_per_second, 1),
        }
        self.folder.append_metrics(row)
        self.progress.show(row)

    def save(self, validation: dict[str, float]) -> None:
        """Checkpoint this step, as the best too if its validation loss is the lowest so far."""
        improved = validation["loss"] < self.reached.best
        if improved:
            self.reached.best = validation["loss"]
        folder = self.folder.checkpoints
        saved = checkpoint.save(folder, self.reached.step, self.model.state_dict(), self.state())
        if improved:
            checkpoint.point(folder, "best", saved)
        checkpoint.prune(folder, keep=1)

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on, but the weights."""
        return {
            "input_shape": list(self.model.input_shape),
            "reached": asdict(self.reached),
            "optimizer": self.step.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "meter": self.step.meter.state_dict(),
            "rng": rng.state(self.device),
        }
