"""Additional pictures for each model of the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.inpaint import from_half, left_half
from experiments.pictures import Band, compose, draw_series, ramp, shrink
from experiments.training import fashion
from vae_fast import evaluate, tasks
from vae_fast.data.embedded import CLASSES
from vae_fast.tasks.pictures import draw_latent_map, draw_score_histogram

COLUMNS = 10


def draw(name: str, model: nn.Module, x: Tensor, y: Tensor | None, folder: Path) -> list[Path]:
    """Draw the pictures of the example ``name``: NAME.png, and NAME-*.png if there are more.

    Args:
        x, y: validation data; the first few are shown.
    """
    torch.manual_seed(0)
    path = folder / f"{name}.png"
    with torch.no_grad():
        if x.dim() != 4:
            return [_series(path, model, x)]
        bands = BANDS.get(name, _plain)(model, x, y)
        more = MORE.get(name, lambda *_: [])(model, x, y, folder)
    return [compose(path, bands, columns=COLUMNS), *more]


# --- bands of images -------------------------------------------------------------------------------


def _plain(model: nn.Module, x: Tensor, y: Tensor | None, rows: int = 3) -> list[Band]:
    return [
        *_reconstructed(model, x, y),
        Band("samples from the prior", tasks.generate(model, rows * COLUMNS, seed=0)),
    ]


def _reconstructed(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    first = x[:COLUMNS]
    given = y[:COLUMNS] if getattr(model, "uses_labels", False) and y is not None else None
    return [
        Band("validation images", first),
        Band("their reconstructions", tasks.reconstruct(model, first, given)),
    ]


def _ae(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    """An autoencoder has no prior, so this shows walks between codes."""
    walks = tasks.interpolate(model, x[:3], x[3:6], steps=COLUMNS, path="linear").flatten(0, 1)
    return [*_reconstructed(model, x, y), Band("straight lines between codes", walks)]


def _by_class(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    z = torch.randn(4, model.latent_dim, generator=torch.Generator().manual_seed(0))
    made = tasks.decode(model, z.repeat_interleave(10, 0), torch.arange(10).repeat(4))
    words = "samples, a class in each column, a z in each row"
    return [*_reconstructed(model, x, y), Band(words, made)]


def _half(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    first = x[:COLUMNS]
    condition = model.condition_from(first, None)
    draws = torch.cat([model.sample(COLUMNS, *condition) for _ in range(2)])
    return [
        Band("what the model is given: the left half", _masked(first)),
        Band("the image, at the mean of the conditional prior", from_half(model, first)),
        Band("two draws from the conditional prior", draws),
        Band("the true image", first),
    ]


def _edges(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    first = x[:COLUMNS]
    (edges,) = model.condition_from(first, None)
    draws = torch.cat([model.sample(COLUMNS, edges) for _ in range(2)])
    return [
        Band("what the model is given: the edges", edges),
        Band("two draws", draws),
        Band("the true image", first),
    ]


def _masked(x: Tensor) -> Tensor:
    """Images with a grey right half."""
    return torch.where(left_half(x), x / 255.0, torch.tensor(0.6))


def _traversals(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    kl = evaluate.kl_per_dimension(model, x)
    used = kl.argsort(descending=True)[:4].tolist()
    z = evaluate.features(model, x[2:3])[0]
    walks = tasks.traverse(model, z, dimensions=used, values=ramp(COLUMNS, z).tolist())
    words = "the four dimensions with the largest KL, from -3 to 3: " + ", ".join(
        f"{kl[d]:.2f} nats" for d in used
    )
    return [*_plain(model, x, y, rows=1), Band(words, walks.flatten(0, 1))]


def _tasks(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    first = x[:COLUMNS]
    known = left_half(first)
    noisy = (first / 255.0 + 0.3 * torch.randn(first.shape)).clamp(0, 1)
    walk = tasks.interpolate(model, x[1:2], x[3:4], steps=COLUMNS)[0]
    return [
        *_plain(model, x, y, rows=2),
        Band("the right half hidden", _masked(first)),
        Band("filled in (tasks.impute)", tasks.impute(model, first, known).mean),
        Band("noise added", noisy),
        Band("noise removed (tasks.denoise)", tasks.denoise(model, noisy)),
        Band("from one image to another on an arc (tasks.interpolate)", walk),
    ]


def _sampled(name: str, words: str, **options: Any) -> Callable[..., list[Band]]:
    """Samples of a sampler that is fitted to fashion10k's codes."""

    def bands(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
        images = fashion("train").images
        fitted = tasks.fit_sampler(name, model, images, seed=0, **options)
        made = tasks.generate(model, 3 * COLUMNS, seed=0, sampler=fitted)
        return [*_reconstructed(model, x, y), Band(words, made)]

    return bands


def _walks(model: nn.Module, x: Tensor, y: Tensor | None) -> list[Band]:
    """Also walks between codes, for a space in which a straight line leaves the codes."""
    walks = tasks.interpolate(model, x[:2], x[3:5], steps=COLUMNS).flatten(0, 1)
    return [*_plain(model, x, y, rows=2), Band("from one image to another on an arc", walks)]


BANDS: dict[str, Callable[..., list[Band]]] = {
    "ae": _ae,
    "beta_vae": _traversals,
    "beta_tcvae": _traversals,
    "factor_vae": _traversals,
    "spherical_vae": _walks,
    "rae": _sampled("gmm", "samples of 10 Gaussians fitted to the codes (--sampler gmm)"),
    "latent_diffusion": _sampled(
        "gmm", "samples of 10 Gaussians fitted to the codes (--sampler gmm)"
    ),
    "vq_vae": _sampled(
        "pixelcnn",
        "samples of a small PixelCNN of 300 steps (--sampler pixelcnn)",
        steps=300,
        channels=32,
        layers=4,
    ),
    "cvae": _by_class,
    "ssvae": _by_class,
    "inpainting_cvae": _half,
    "edges_cvae": _edges,
    "fashion": _tasks,
}


# --- plots -------------------------------------------------------------------------------------------


def _map(model: nn.Module, x: Tensor, y: Tensor, folder: Path, name: str) -> list[Path]:
    path = folder / f"{name}-map.png"
    draw_latent_map(path, evaluate.features(model, x), y, names=CLASSES, caption=f"{name}: codes")
    return [shrink(path)]


def _map_and_scores(model: nn.Module, x: Tensor, y: Tensor, folder: Path) -> list[Path]:
    """The codes, and the negative ELBOs of images and of their inverted images."""
    normal = tasks.anomaly_scores(model, x)
    strange = tasks.anomaly_scores(model, 255 - x)
    path = folder / "fashion-scores.png"
    threshold = tasks.anomaly_threshold(normal)
    words = "negative ELBO of validation images, and of the same images inverted"
    draw_score_histogram(path, normal, strange, threshold=threshold, caption=words)
    return [*_map(model, x, y, folder, "fashion"), shrink(path)]


MORE: dict[str, Callable[..., list[Path]]] = {
    "fashion": _map_and_scores,
    "aae": lambda model, x, y, folder: _map(model, x, y, folder, "aae"),
}


def _series(path: Path, model: nn.Module, x: Tensor) -> Path:
    """Real-valued sequences (N, T), or the first feature of (N, T, F): a few."""
    first = x[:4]
    panels = {
        "validation series": first,
        "their reconstructions": tasks.reconstruct(model, first),
        "samples from the prior": tasks.generate(model, 4, seed=0),
    }
    lines = [(words, s if s.dim() == 2 else s[..., 0]) for words, s in panels.items()]
    return draw_series(path, [(words, s.float()) for words, s in lines])
