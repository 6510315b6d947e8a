"""The engine: one model, one data set, one loop, read from top to bottom.

Batches stay uint8 and go straight to the loss; the loss's terms stay on the device and are read
once per log interval. What a run leaves behind is in ``run_folder``, how it is kept safe in
``checkpoint``.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from vae_fast import data as datasets
from vae_fast.train import checkpoint, rng
from vae_fast.train.checkpoint import Checkpoint, CheckpointError
from vae_fast.train.config import TrainConfig, resolve_device
from vae_fast.train.extras import need
from vae_fast.train.meter import Meter
from vae_fast.train.progress import Progress
from vae_fast.train.run_folder import RunFolder
from vae_fast.train.setup import build_model, load_data
from vae_fast.train.showcase import write_pictures
from vae_fast.train.step import Step
from vae_fast.train.stop import Interrupted, StopSignals

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

    epoch: int = 0  # whole epochs, validation included
    step: int = 0
    rows: int = 0  # of metrics.jsonl
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
        folder: the folder of a run to go on with (``Trainer.resume``), instead of a new one.
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
        self.total_steps = config.epochs * len(self.batches)
        self.interval_seconds = 0.0  # since the last row of metrics, when the run was stopped
        self.improved = False
        self.stop = StopSignals()
        self.folder = RunFolder.create(config) if folder is None else folder
        self.folder.record_environment(config, self.device)

    @classmethod
    def resume(
        cls, run: str | Path, *, epochs: int | None = None, say: Any = print, **data: Any
    ) -> Trainer:
        """The trainer of the run in folder ``run``, where its newest whole checkpoint left it.

        Args:
            epochs: a new number of epochs in all, to train longer.
            say: is given a line for each checkpoint that is damaged and passed over.
            data: ``train_data`` and ``val_data``, if the run was given them.
        """
        folder = RunFolder(run)
        config = folder.config()
        config.epochs = config.epochs if epochs is None else epochs
        trainer = cls(config, folder=folder, **data)
        if checkpoint.step_folders(folder.checkpoints):
            trainer.restore(checkpoint.load_newest(folder.checkpoints, say))
        else:
            say("the run was stopped before its first checkpoint: it starts again")
            folder.keep_metrics(0)
        return trainer

    # --- the main loop ---------------------------------------------------------------------------

    def fit(self) -> Result:
        """Train to the end of the last epoch, validating after each.

        Raises Interrupted after SIGINT or SIGTERM, once everything is saved.
        """
        config, reached = self.config, self.reached
        self.interval_began = time.perf_counter() - self.interval_seconds
        with self.stop, Progress(reached.step, self.total_steps) as self.progress:
            for epoch in range(reached.epoch, config.epochs):
                self.batches.set_epoch(epoch)
                self.model.train()
                for batch in self.batches:
                    self.step(batch)
                    reached.step += 1
                    if reached.step % config.log_every == 0:
                        self.log_training()
                    if self.checkpoint_is_due():
                        self.save()
                    if self.stop.asked:
                        self.leave()
                self.log_training()
                reached.epoch += 1
                self.validate()
                if self.checkpoint_is_due(epoch_ended=True):
                    self.save()
                if self.stop.asked and reached.epoch < config.epochs:
                    self.leave()
        return self.result()

    @torch.no_grad()
    def validate(self) -> None:
        """The training objective over the validation data, with the same noise every time."""
        self.model.eval()
        with self.clock_stopped() as began, rng.forked(self.config.seed, self.device):
            meter = Meter(self.device)
            for batch in self.val_batches:
                meter.add(self.step.objective(batch), len(batch.images))
            samples, means = meter.samples, meter.read()
            self.log("val", means, samples / (time.perf_counter() - began))
        self.improved = means["loss"] < self.reached.best
        self.reached.best = min(self.reached.best, means["loss"])

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
            "epoch": self.reached.epoch + (split == "train"),
            "step": self.reached.step,
            "split": split,
            **means,
            "seconds": round(self.reached.seconds, 4),
            "samples_per_second": round(samples_per_second, 1),
        }
        self.folder.append_metrics(row)
        self.reached.rows += 1
        self.progress.show(row)

    def checkpoint_is_due(self, epoch_ended: bool = False) -> bool:
        """At intervals, at the best, and at the end of the run."""
        when, reached = self.config.checkpoint, self.reached
        if not epoch_ended:
            return when.every_steps > 0 and reached.step % when.every_steps == 0
        every_epoch = when.every_epochs > 0 and reached.epoch % when.every_epochs == 0
        return every_epoch or self.improved or reached.epoch == self.config.epochs

    def save(self) -> None:
        """Checkpoint this step, as the best too if it is."""
        folder = self.folder.checkpoints
        with self.clock_stopped():
            weights = self.model.state_dict()
            saved = checkpoint.save(folder, self.reached.step, weights, self.state())
            if self.improved:
                checkpoint.point(folder, "best", saved)
                self.improved = False
            checkpoint.prune(folder, self.config.checkpoint.keep)

    def leave(self) -> NoReturn:
        """Checkpoint and raise Interrupted."""
        self.save()
        name = signal.Signals(self.stop.asked).name
        raise Interrupted(
            self.stop.asked,
            f"stopped by {name} at step {self.reached.step}, all saved: "
            f"`vae-fast resume {self.folder.path}` goes on",
        )

    @contextmanager
    def clock_stopped(self) -> Iterator[float]:
        """What is done within doesn't count as time of training; gives the time it began at."""
        began = time.perf_counter()
        yield began
        self.interval_began += time.perf_counter() - began

    def result(self) -> Result:
        """The last validation, and the pictures, drawn now."""
        row = [row for row in self.folder.metrics() if row["split"] == "val"][-1]
        speed = self.reached.samples / self.reached.seconds
        return Result(row["loss"], row["recon"], row["kl"], speed, write_pictures(self))

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on, but the weights."""
        return {
            "input_shape": list(self.model.input_shape),
            "reached": asdict(self.reached),
            "interval_seconds": time.perf_counter() - self.interval_began,
            "is_best": self.improved,
            "step": self.step.state_dict(),
            "batches": self.batches.state_dict(),
            "rng": rng.state(self.device),
        }

    def restore(self, saved: Checkpoint) -> None:
        """The inverse of ``state``: go on from ``saved``, and forget what came after it."""
        try:
            self.model.load_state_dict(saved.weights)
            self.step.load_state_dict(saved.state["step"])
            self.batches.load_state_dict(saved.state["batches"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{saved.path} is of another model, data or configuration: {error}"
            ) from error
        rng.restore(saved.state["rng"], self.device)
        self.reached = Reached(**saved.state["reached"])
        self.interval_seconds = saved.state["interval_seconds"]
        self.folder.keep_metrics(self.reached.rows)
        checkpoint.go_back_to(saved, is_best=saved.state["is_best"])
        if not (self.folder.checkpoints / "best").exists():
            self.reached.best = math.inf
