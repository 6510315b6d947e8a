"""Predict half an image from the other half, compared with the mean image and the most similar
image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, shown
from experiments.training import Clock, fashion, train
from vae_fast import tasks

TITLE = "Inpainting half an image"
SETTINGS = {
    "seeds": [0, 1, 2],
    "epochs": 10,
    "latent_dim": 20,
    "hidden": 400,
    "train_samples": 10_000,
    "test_samples": 500,
    "steps": 20,
    "draws": 5,
}
QUICK = {**SETTINGS, "seeds": [0, 1], "epochs": 2, "train_samples": 1000, "test_samples": 40,
         "steps": 3, "draws": 2}  # fmt: skip


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", limit=settings["train_samples"])
    test = fashion("val", limit=settings["test_samples"])
    known = left_half(test.images)
    x, seen = test.images / 255.0, data.images / 255.0
    values = {
        "the mean image": [error(seen.mean(0).expand(x.shape), x, known)],
        "the training image with the most similar left half": [
            error(nearest(x, seen, known), x, known)
        ],
    }
    vae, cvae = "VAE, iterated sampling (`tasks.impute`)", "CVAE given the left half"
    args = {
        "latent_dim": settings["latent_dim"],
        "network_options": {"hidden": [settings["hidden"]]},
    }
    for seed in settings["seeds"]:
        config = {"epochs": settings["epochs"], "seed": seed}
        model = train({**config, "model": "vae", "model_args": args}, data, test)
        torch.manual_seed(seed)
        options = {"steps": settings["steps"], "draws": settings["draws"]}
        filled = tasks.impute(model, test.images, known, **options).mean
        values.setdefault(vae, []).append(error(filled, x, known))
        args_c = {**args, "condition": "left-half", "prior": "learned"}
        model = train({**config, "model": "cvae", "model_args": args_c}, data, test)
        values.setdefault(cvae, []).append(error(from_half(model, test.images), x, known))
        clock.say(f"seed {seed}: VAE {values[vae][-1]:.5f}, CVAE {values[cvae][-1]:.5f}")
    return report(values, settings, (vae, cvae))


def left_half(images: Tensor) -> Tensor:
    """True for the left half of each image, of the images' shape."""
    known = torch.zeros_like(images, dtype=torch.bool)
    known[..., : images.shape[-1] // 2] = True
    return known


def error(filled: Tensor, x: Tensor, known: Tensor) -> float:
    """The mean squared error over the missing pixels, on the scale of [0, 1]."""
    return float((filled - x)[~known].double().square().mean())


def nearest(x: Tensor, seen: Tensor, known: Tensor) -> Tensor:
    """For each x, the image in ``seen`` nearest in the known pixels (the same pixels for all x)."""
    columns = known[0].flatten()
    distances = torch.cdist(x.flatten(1)[:, columns], seen.flatten(1)[:, columns])
    return seen[distances.argmin(1)]


@torch.no_grad()
def from_half(model: torch.nn.Module, images: Tensor) -> Tensor:
    """E[x | left half] at the mean of the conditional prior."""
    condition = model.condition_from(images, None)
    prior = model.prior(*condition)
    return model.likelihood.mean(model.decode(prior.mu, *condition))


def report(values: dict[str, list[float]], settings: dict[str, Any], ours: tuple) -> Result:
    baseline = values["the mean image"]
    return Result(
        name="inpaint",
        title=TITLE,
        how=(
            f"fashion10k, grey: the right half of {settings['test_samples']} validation images is "
            f"hidden. MLP 784-{settings['hidden']}-{settings['latent_dim']}, Bernoulli likelihood, "
            f"{settings['epochs']} epochs on {settings['train_samples']} images. The VAE fills the "
            f"gap by {settings['steps']} steps of conditional sampling, averaged over "
            f"{settings['draws']} chains; the CVAE was trained on left halves as its condition and "
            "answers at the mean of its prior. Mean squared error over the missing pixels, on the "
            f"scale of [0, 1], mean ± standard deviation over {len(settings['seeds'])} seeds; "
            "lower is better."
        ),
        settings=settings,
        columns=["filled in by", "mean squared error"],
        rows=[[name, shown(found, 4)] for name, found in values.items()],
        values=values,
        verdicts=[
            Verdict(
                f"{name}: a smaller error than the mean image's",
                clearly_better(values[name], baseline),
                f"{shown(values[name], 4)} against {shown(baseline, 4)}",
            )
            for name in ours
        ],
    )
