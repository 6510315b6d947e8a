"""The pictures of a run: of its model and of its metrics."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast import pictures
from vae_fast.data import Batch, Batches
from vae_fast.data.representative import representative_rows, take
from vae_fast.models.conditions import Labels
from vae_fast.models.interface import Model, conditioning_of, likelihood_of, uses_labels
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.train import rng
from vae_fast.train.sharded import run_whole

SERIES = 20


def classes_of(model: Model) -> int:
    """Columns of the samples: a class each where samples are of 2 to 20 classes in turn, else 10."""
    condition = conditioning_of(model)
    count = condition.features if isinstance(condition, Labels) else 10
    return count if 2 <= count <= 20 else 10


def some_samples(batches: Batches, n: int) -> Batch:
    """``n`` samples of ``batches`` that stand for all, or all if there are fewer. A rank of many
    takes the first ones of its own."""
    alone = batches.cuts.world_size == 1 and not batches.shuffle
    return take(batches, n, representative_rows(batches.data, n) if alone else None)


@torch.no_grad()
def reconstruct(model: Model, batch: Batch) -> Tensor:
    """E[x | z] of a batch, in evaluation mode; (N, *input_shape) in [0, 1] for images."""
    model.eval()
    labels = (batch.labels,) if uses_labels(model) else ()
    return run_whole(model, lambda: model.reconstruct(batch.images, *labels))


@torch.no_grad()
def sample(model: Model, n: int, seed: int, temperature: float = 1.0) -> Tensor:
    """``n`` samples of the model; the same seed gives the same samples."""
    model.eval()
    options = {} if temperature == 1.0 else {"temperature": temperature}
    with rng.forked(seed):
        return run_whole(model, lambda: model.sample(n, **options))


def draw_pictures(trainer: Any, prefix: str = "", curves: bool = True) -> list[Path]:
    """Draw reconstructions.png and samples.png, of images or series, and curves.png.

    A picture that cannot be drawn gives a warning; the run does not fail.

    Args:
        prefix: put before the names, within the run's folder.
    """
    config, folder, model = trainer.config, trainer.folder, trainer.model
    are_images = len(model.input_shape) == 3
    are_series = len(model.input_shape) == 1 and not getattr(model.likelihood, "discrete", True)
    if are_images or are_series:  # on every rank, since each may hold a part of the model
        columns = classes_of(model) if are_images else 5
        pairs, draws_of_prior = (4 * 10, 10 * columns) if are_images else (SERIES, SERIES)
        try:
            batch = some_samples(trainer.val_batches, pairs)
            again, drawn = reconstruct(model, batch), sample(model, draws_of_prior, config.seed)
        except Exception as error:
            if trainer.world.is_distributed:  # other ranks may not have failed, and would wait
                raise
            _warn("reconstructions.png and samples.png", error)
            are_images = are_series = False
    if not trainer.world.is_main:
        return []
    rows = folder.metrics()
    last = [row for row in rows if row["split"] == "val"][-1]
    loss = "loss not finite" if last["loss"] is None else f"{last['loss']:.1f} nats per sample"
    caption = f"{config.model} on {config.data} · epoch {last['epoch']} · {loss}"

    draws = {}
    if are_images:
        draws["reconstructions.png"] = lambda path: pictures.draw_reconstructions(
            path, batch.images, again, caption
        )
        draws["samples.png"] = lambda path: pictures.draw_samples(path, drawn, caption, columns)
    if are_series:
        if standardized(likelihood_of(model)):  # columns that have no common unit
            shown = model.network_input
            caption += " · columns standardized"
        else:
            shown = torch.Tensor.float
        table = getattr(trainer.batches.data, "columns", None)
        draws["reconstructions.png"] = lambda path: pictures.draw_series(
            path,
            (shown(batch.images), shown(again)),
            ("data", "reconstruction"),
            caption,
            table=table,
        )
        draws["samples.png"] = lambda path: pictures.draw_series(
            path, (shown(drawn),), ("sample",), caption, table=table
        )
    if curves:
        draws["curves.png"] = lambda path: pictures.draw_curves(path, rows, caption)
    prefix = f"{prefix}-" if prefix else ""
    paths = []
    for name, draw in draws.items():
        try:
            paths.append(folder.write_picture(prefix + name, draw))
        except Exception as error:  # noqa: BLE001 (whatever it is, the training is done)
            _warn(prefix + name, error)
    return paths


def _warn(what: str, error: Exception) -> None:
    warnings.warn(f"{what} can't be drawn: {error!r}", stacklevel=3)
