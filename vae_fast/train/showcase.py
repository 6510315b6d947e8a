"""What a run shows at its end: the pictures of its model and its metrics."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vae_fast.data import Batches
from vae_fast.train import pictures, rng

RECONSTRUCTIONS, SAMPLES = 40, 100


def first_images(batches: Batches, n: int) -> Tensor:
    """The first ``n`` images of ``batches``, or all if there are fewer."""
    parts, found = [], 0
    for batch in batches:
        parts.append(batch.images)
        found += len(batch.images)
        if found >= n:
            break
    return torch.cat(parts)[:n]


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return model.reconstruct(images)


@torch.no_grad()
def sample(model: nn.Module, n: int, seed: int, temperature: float = 1.0) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    with rng.forked(seed, device):
        return model.sample(n, temperature=temperature)


def write_pictures(trainer) -> list[Path]:
    """Draw reconstructions.png, samples.png and curves.png; vectors only have curves."""
    config, folder, model = trainer.config, trainer.folder, trainer.model
    rows = folder.metrics()
    last = [row for row in rows if row["split"] == "val"][-1]
    caption = (
        f"{config.model} on {config.data} · epoch {last['epoch']} · "
        f"{last['loss']:.1f} nats per sample"
    )
    paths = []
    images = first_images(trainer.val_batches, RECONSTRUCTIONS)
    if images.dim() == 4:
        again, drawn = reconstruct(model, images), sample(model, SAMPLES, config.seed)
        paths.append(
            folder.write_picture(
                "reconstructions.png",
                lambda path: pictures.draw_reconstructions(path, images, again, caption),
            )
        )
        paths.append(
            folder.write_picture(
                "samples.png", lambda path: pictures.draw_samples(path, drawn, caption)
            )
        )
    paths.append(
        folder.write_picture("curves.png", lambda path: pictures.draw_curves(path, rows, caption))
    )
    return paths
