"""Callbacks, which are called during a run, and loggers to other services, which are callbacks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_fast.extras import need
from vae_fast.train.config import TrainConfig, to_dict

if TYPE_CHECKING:
    from vae_fast.train.trainer import Trainer

Row = dict[str, Any]  # of metrics.jsonl


class Callback:
    """Methods that a run's main process calls; each does nothing unless it is overridden.

    An error in a method ends the run. The next step sees changes that a method makes to the model.
    Captured and recorded steps run no hooks, but every runner calls ``on_step``.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Training begins, or resumes at ``trainer.progress.step``."""

    def on_step(self, trainer: Trainer) -> None:
        """A step was taken; ``trainer.progress.step`` includes it. The device may not have finished
        it."""

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """A row of metrics was written, of training or validation (``row["split"]``)."""

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """An epoch has ended, or the run has ended within an epoch; ``row`` is its validation's."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A whole checkpoint was written."""

    def on_picture(self, trainer: Trainer, path: Path) -> None:
        """A picture, or an array of samples, was drawn into the run's folder."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Training has ended: normally (None), by Interrupted, or by an error."""


class Wandb(Callback):
    """Sends rows and pictures to Weights & Biases. A resumed run continues the same run there.

    wandb reads its own environment variables (WANDB_PROJECT, WANDB_MODE, ...).
    """

    def __init__(self) -> None:
        self._wandb: Any = need("wandb", "--log-to wandb", install="wandb")

    def on_start(self, trainer: Trainer) -> None:
        folder, kept = trainer.folder.path, trainer.folder.path / "wandb_run"
        run_id = kept.read_text().strip() if kept.exists() else None
        self._run = self._wandb.init(
            id=run_id,
            resume="allow",
            name=folder.name,
            dir=str(folder),
            config=to_dict(trainer.config),
        )
        kept.write_text(f"{self._run.id}\n")

    def on_row(self, trainer: Trainer, row: Row) -> None:
        self._run.log(numbers(row), step=row["step"])

    def on_picture(self, trainer: Trainer, path: Path) -> None:
        if path.suffix == ".png":
            self._run.log({path.stem: self._wandb.Image(str(path))}, step=trainer.progress.step)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class MLflow(Callback):
    """Sends parameters, rows and pictures to MLflow. A resumed run continues the same run there.

    MLflow reads its own environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...).
    """

    def __init__(self) -> None:
        self._mlflow: Any = need("mlflow", "--log-to mlflow", install="mlflow")

    def on_start(self, trainer: Trainer) -> None:
        folder, kept = trainer.folder.path, trainer.folder.path / "mlflow_run"
        if kept.exists():
            self._mlflow.start_run(run_id=kept.read_text().strip())
            return
        run = self._mlflow.start_run(run_name=folder.name)
        kept.write_text(f"{run.info.run_id}\n")
        self._mlflow.log_params({k: str(v)[:500] for k, v in flat(to_dict(trainer.config))})

    def on_row(self, trainer: Trainer, row: Row) -> None:
        self._mlflow.log_metrics(numbers(row), step=row["step"])

    def on_picture(self, trainer: Trainer, path: Path) -> None:
        self._mlflow.log_artifact(str(path))

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self._mlflow.end_run("FINISHED" if error is None else "FAILED")


def loggers(config: TrainConfig) -> list[Callback]:
    """The loggers that the configuration asks for; their packages are imported here."""
    return [{"wandb": Wandb, "mlflow": MLflow}[config.log_to]()] if config.log_to != "none" else []


def numbers(row: Row) -> dict[str, float]:
    """A row's finite numbers by names such as val/loss and val/kl_per_dim/3."""
    found = {}
    for name, value in row.items():
        if name in ("step", "split"):
            continue
        parts = enumerate(value) if isinstance(value, list) else [("", value)]
        for place, number in parts:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                tag = re.sub(r"[^\w./ -]", "_", f"{row['split']}/{name}/{place}".rstrip("/"))
                found[tag] = number
    return found


def flat(values: dict[str, Any], heading: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{heading}{name}.")
        else:
            yield f"{heading}{name}", value
