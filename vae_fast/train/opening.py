"""What a run says before its first row of metrics: model, data, steps, device, and how long it takes."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from vae_fast.data import DataOptions, holds_images
from vae_fast.data.catalog import canonical
from vae_fast.train.callbacks import Callback
from vae_fast.train.config import GIVEN, TrainConfig

if TYPE_CHECKING:
    from vae_fast.train.trainer import Trainer

MANY = 5_000  # image files whose decoding in every epoch is worth a word
SOON = 3.0  # seconds of steps that an estimate is made from


def opening(trainer: Trainer) -> str:
    """Two lines: what is trained on what, and in how many steps on which device."""
    config, progress = trainer.config, trainer.progress
    data, held_out = trainer.batches.data, trainer.val_batches.data
    shape = "x".join(map(str, data.shape))
    count = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    left = trainer.total_steps - progress.step
    begun = f", the last of {trainer.total_steps:,}" if progress.step else ""
    return (
        f"{config.model}, {count:,} parameters, on {data.name}: {len(data):,} samples of {shape}, "
        f"{len(held_out):,} more for validation\n"
        f"{left:,} steps of {config.batch_size} samples{begun}, {len(trainer.batches):,} an epoch, "
        f"on {_device(trainer.device)}{_ranks(trainer.world.size)}{_decoding(config, data)}"
    )


def _decoding(config: TrainConfig, data: Any) -> str:
    """How to spare a large folder of image files the decoding in every epoch; "" for other data."""
    few = len(data) < MANY or config.epochs < 2
    named = config.data.startswith(GIVEN) or canonical(config.data)
    # The folders of splits would need a pack each.
    if few or named or getattr(data, "splits", None) or not holds_images(config.data):
        return ""
    how = config.data_options
    flags = "".join(
        f" --data.{name} {shlex.quote(str(getattr(how, name)))}"
        for name in ("size", "mode", "background", "damaged")
        if getattr(how, name) != getattr(DataOptions(), name)
    )
    return (
        "\nEvery epoch decodes these files again. To decode them once: "
        f"vae-fast pack {shlex.quote(config.data)} FOLDER{flags}, and then train with --data FOLDER"
    )


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"the CPU with {threads} thread{'s' * (threads > 1)}"


def _ranks(size: int) -> str:
    return f", in {size} processes" if size > 1 else ""


def duration(seconds: float) -> str:
    """Roughly, as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Estimate(Callback):
    """Says once how long the rest will take, if no row of metrics comes within three seconds.

    A terminal's bar says so itself.
    """

    def on_start(self, trainer: Trainer) -> None:
        self._first, self._said = trainer.progress.step, sys.stderr.isatty()
        self._began: float | None = None

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self._said = True

    def on_step(self, trainer: Trainer) -> None:
        if self._said:
            return
        now = time.perf_counter()
        if self._began is None:  # the first step builds and compiles
            self._began, self._first = now, trainer.progress.step
        elif now - self._began > SOON:
            self._said = True
            step, total = trainer.progress.step, trainer.total_steps
            left = (now - self._began) / (step - self._first) * (total - step)
            trainer.display.say(f"step {step:,} of {total:,}: about {duration(left)} left")
