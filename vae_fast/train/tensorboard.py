"""TensorBoard, if it is installed: rows of metrics, KL per dimension, and pictures."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from vae_fast.extras import need
from vae_fast.train.callbacks import Callback, Row

if TYPE_CHECKING:
    from vae_fast.train.trainer import Trainer


@final
class TensorBoard(Callback):
    """Writes to RUN/tensorboard; does nothing if TensorBoard is off or not installed.

    Args:
        choice: auto, on or off.
    """

    def __init__(self, choice: str) -> None:
        self._writer: Any = None
        installed = importlib.util.find_spec("tensorboard") is not None
        self._is_on = choice == "on" or (choice == "auto" and installed)
        if self._is_on:
            need("tensorboard", "--tensorboard on", install="tensorboard")

    def on_start(self, trainer: Trainer) -> None:
        if self._is_on:  # hides what was written for later steps
            module = importlib.import_module("torch.utils.tensorboard")
            folder, step = trainer.folder.path / "tensorboard", trainer.progress.step
            self._writer = module.SummaryWriter(str(folder), purge_step=step)

    def on_row(self, trainer: Trainer, row: Row) -> None:
        """Numbers as scalars, lists as histograms, under their split."""
        if self._writer is None:
            return
        for name, value in row.items():
            tag = f"{row['split']}/{name}"
            if isinstance(value, list) and None not in value:
                self._writer.add_histogram(tag, _tensor(value), row["step"])
            elif isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._writer.add_scalar(tag, value, row["step"])

    def on_picture(self, trainer: Trainer, path: Path) -> None:
        """A PNG as an image named like it."""
        if self._writer is None or path.suffix != ".png":
            return
        import numpy as np

        with need("PIL.Image", "drawing pictures").open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(path.stem, pixels, trainer.progress.step, dataformats="HWC")

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()


def _tensor(values: list[float]) -> Any:
    import torch

    return torch.tensor(values)
