"""TensorBoard, where it is installed: the rows of metrics, KL per dimension, and pictures."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, final

from vae_fast.train.extras import need


@final
class TensorBoard:
    """Writes to RUN/tensorboard; does nothing where TensorBoard is off or not installed.

    Args:
        choice: auto, on or off.
        step: where the run is; what was written of later steps is hidden.
    """

    def __init__(self, choice: str, folder: Path, step: int) -> None:
        self._writer: Any = None
        installed = importlib.util.find_spec("tensorboard") is not None
        if choice == "on" or (choice == "auto" and installed):
            need("tensorboard", "--tensorboard on", install="tensorboard")
            module = importlib.import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def row(self, row: dict[str, Any]) -> None:
        """Numbers as scalars, lists as histograms, under their split."""
        if self._writer is None:
            return
        for name, value in row.items():
            tag = f"{row['split']}/{name}"
            if isinstance(value, list) and None not in value:
                self._writer.add_histogram(tag, _tensor(value), row["step"])
            elif isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._writer.add_scalar(tag, value, row["step"])

    def picture(self, path: Path, step: int) -> None:
        """A PNG as an image named like it."""
        if self._writer is None or path.suffix != ".png":
            return
        import numpy as np

        with need("PIL.Image", "drawing pictures").open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(path.stem, pixels, step, dataformats="HWC")

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _tensor(values: list[float]) -> Any:
    import torch

    return torch.tensor(values)
