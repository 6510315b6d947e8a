"""Encode data to features, and write them to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from vae_fast.models.interface import HasFeatures, Model
from vae_fast.tasks.batched import in_batches


def features(model: Model, x: Tensor, y: Tensor | None = None, *, batch_size: int = 256) -> Tensor:
    """The posterior's mean of each sample, (N, latent_dim)."""
    code = (
        model.features if isinstance(model, HasFeatures) else lambda *given: model.encode(*given)[0]
    )
    return in_batches(model, code, x, y, batch_size=batch_size)


def encode(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    path: str | Path | None = None,
    batch_size: int = 256,
) -> Tensor:
    """The posterior's mean of each sample, (N, latent_dim), also written to ``path`` (.npy).

    Raises:
        ValueError: ``path`` does not end in .npy, or its folder does not exist; raised before any
            work.
    """
    if path is not None:
        path = Path(path)
        if path.suffix != ".npy":
            raise ValueError(
                f"features are written as .npy: path must end in it, got {path.name!r}"
            )
        if not path.parent.is_dir():
            raise ValueError(f"the folder {path.parent} doesn't exist: create it first")
    codes = features(model, x, y, batch_size=batch_size)
    if path is not None:
        np.save(path, codes.cpu().float().numpy(), allow_pickle=False)
    return codes
