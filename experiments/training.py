"""Train a model for an experiment: by the engine, in a temporary folder."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from experiments.cells import Cells
from vae_fast.data import load
from vae_fast.data.arrays import ArrayData
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import from_dict


class TrainerWithoutPictures(Trainer):
    """A trainer that draws nothing at its end."""

    def draw(self, prefix: str, curves: bool) -> list[Path]:
        return []


def fashion(split: str, *, binary: bool = False, limit: int | None = None) -> ArrayData:
    """fashion10k, grey (uint8) or binarised at half brightness (bool), its first ``limit`` images."""
    data = load("fashion10k", split=split)
    images = data.images > 127 if binary else data.images
    name = "fashion10k, binarised" if binary else "fashion10k"
    return ArrayData(images[:limit], data.labels[:limit], name, data.provenance)


def of_class(data: ArrayData, label: int) -> ArrayData:
    """The samples of one class."""
    chosen = data.labels == label
    return ArrayData(data.images[chosen], data.labels[chosen], data.name, data.provenance)


def train(values: dict[str, Any], train_data: Any = None, val_data: Any = None) -> nn.Module:
    """The model of a configuration after its last epoch, in evaluation mode, with the moving
    average of its weights if the configuration has one.

    Args:
        values: the fields of TrainConfig, as in a YAML file; the run's folder is temporary.
        train_data, val_data: instead of the configuration's data.
    """
    with tempfile.TemporaryDirectory(prefix="vae-fast-experiment-") as folder:
        config: TrainConfig = from_dict(values)
        config.out, config.tensorboard = str(Path(folder) / "run"), "off"
        config.checkpoint.every_epochs = 0
        config.device = "cpu"
        with quiet():
            trainer = TrainerWithoutPictures(config, train_data=train_data, val_data=val_data)
            trainer.fit()
        with trainer.step.averaged():
            return copy.deepcopy(trainer.model).eval()


@contextlib.contextmanager
def quiet():
    """Suppress output within the block, such as progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def parameters(model: nn.Module) -> int:
    """The number of a model's trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Clock:
    """Prints what is being done, with the elapsed time, and keeps what is measured in ``cells``."""

    def __init__(self, cells: Cells | None = None) -> None:
        self.cells = Cells() if cells is None else cells
        self.began = time.perf_counter() - self.cells.seconds

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of ``key``, measured unless an earlier run has kept it."""
        return self.cells.of(key, measure, self.seconds)

    def say(self, text: str) -> None:
        print(f"[{self.seconds():6.0f} s] {text}", flush=True)

    def seconds(self) -> float:
        return time.perf_counter() - self.began
