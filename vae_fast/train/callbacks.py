"""What is told of a run as it goes on: callbacks, and loggers to elsewhere, which are callbacks."""

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
    """Is told of a run by its main process; each method does nothing unless it is overridden.

    An error that a method raises ends the run. What a method does to the model is seen by the next
    step. A captured or recorded step runs no hooks, but ``on_step`` is called by every runner.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Training begins, or goes on at ``trainer.progress.step``."""

    def on_step(self, trainer: Trainer) -> None:
        """A step was taken; ``trainer.progress.step`` counts it. Nothing has waited for the device."""

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """A row of metrics was written, of training or validation (``row["split"]``)."""

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """An epoch has ended, or the run within one; ``row`` is its validation's."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint was written, whole."""

    def on_picture(self, trainer: Trainer, path: Path) -> None:
        """A picture, or an array of samples, was drawn into the run's folder."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Training has ended: by itself (None), by Interrupted, or by an error."""


class Wandb(Callback):
    """Rows and pictures to Weights & Biases; a run that goes on is the same one there.

    Its own environment variables (WANDB_PROJECT, WANDB_MODE, ...) are followed.
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
    """Parameters, rows and pictures to MLflow; a run that goes on is the same one there.

    Its own environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) are followed.
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
    """Those that the configuration asks for; what they need is imported here."""
    return [{"wandb": Wandb, "mlflow": MLflow}[config.log_to]()] if config.log_to != "none" else []


def numbers(row: Row) -> dict[str, float]:
    """A row's numbers by names such as val/loss and val/kl_per_dim/3; none that are not finite."""
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
