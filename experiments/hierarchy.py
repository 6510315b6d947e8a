"""The hierarchical VAE against a flat VAE with as many parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bounds import METRICS, judge
from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, mean, shown
from experiments.training import Clock, fashion, parameters, train
from vae_fast import models

TITLE = "HVAE and VAE of the same parameter count"
EXAMPLE = Path(__file__).parents[1] / "examples" / "hvae.yaml"
SETTINGS = {
    "seeds": [0, 1, 2],
    "epochs": None,
    "longer": 3,
    "far_larger": 400,
    "train_samples": 10_000,
    "test_samples": 500,
    "nll_samples": 100,
    "hvae": {},
}
QUICK = {**SETTINGS, "seeds": [0, 1], "epochs": 1, "train_samples": 200, "test_samples": 20,
         "longer": 2, "far_larger": 64, "nll_samples": 5,
         "hvae": {"levels": [[1, 1], [4, 1]], "width": 8, "z_channels": 2}}  # fmt: skip
# Networks of a flat VAE by size n; the residual one halves an image as often as the hierarchy. The
# record was measured with transposed convolutions, which were the default.
SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "MLP": lambda n: {"network_options": {"hidden": [n, n]}},
    "residual": lambda n: {
        "network": "resnet",
        "network_options": {"channels": [n, 2 * n, 2 * n], "upsampling": "transposed"},
    },
}


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", binary=True, limit=settings["train_samples"])
    test = fashion("val", binary=True, limit=settings["test_samples"])
    values: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    contenders = configs(settings, tuple(data.shape))
    for name, config in contenders.items():
        found = values.setdefault(name, {metric: [] for metric in METRICS})
        for seed in settings["seeds"]:
            model = train({**config, "seed": seed}, data, test)
            counts[name] = parameters(model)
            measured = judge(model, test, settings["nll_samples"])
            clock.say(f"{name}, {counts[name]:,} parameters, seed {seed}: {measured}")
            for metric in METRICS:
                found[metric].append(measured[metric])
    return report(values, counts, contenders["HVAE"]["epochs"], settings)


def configs(settings: dict[str, Any], shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """examples/hvae.yaml and flat VAEs, each trained for the same time, and for ``longer`` times
    that."""
    import yaml

    example = yaml.safe_load(EXAMPLE.read_text())
    example["model_args"].update(settings["hvae"])
    hvae = models.build("hvae", shape, **example["model_args"])
    kept = ("objective", "optimizer", "batch_size", "lr", "ema", "epochs")
    common = {key: example[key] for key in kept if key in example}
    common["epochs"] = settings["epochs"] or example["epochs"]
    longer = settings["longer"] * common["epochs"]
    chosen = {"HVAE": ("hvae", example["model_args"])}
    for name in SHAPES:
        chosen[f"VAE, {name}"] = ("vae", vae_of_size(parameters(hvae), shape, name))
    larger = {"latent_dim": 20, **SHAPES["MLP"](settings["far_larger"])}
    chosen["VAE, MLP, far larger"] = ("vae", larger)
    found = {}
    for name, (model, args) in chosen.items():
        found[name] = {"model": model, "model_args": args, **common}
        found[f"{name}, {longer} epochs"] = {**found[name], "epochs": longer}
    return found


def vae_of_size(
    count: int, shape: tuple[int, ...], name: str = "MLP", latent_dim: int = 20
) -> dict[str, Any]:
    """The model_args of the smallest VAE of one of the SHAPES with at least ``count``
    parameters."""

    def args(n: int) -> dict[str, Any]:
        return {"latent_dim": latent_dim, **SHAPES[name](n)}

    low, high = 0, 1
    while parameters(models.build("vae", shape, **args(high))) < count:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = parameters(models.build("vae", shape, **args(middle))) >= count
        low, high = (low, middle) if enough else (middle, high)
    return args(high)


def report(
    values: dict[str, Any], counts: dict[str, int], epochs: int, settings: dict[str, Any]
) -> Result:
    longer = f", {settings['longer'] * epochs} epochs"
    vaes = [name for name in values if name.startswith("VAE")]
    short = [name for name in vaes if not name.endswith(longer)]
    long = [name for name in vaes if name.endswith(longer)]

    def beaten(ours: str, names: list[str], words: str) -> Verdict:
        hvae = values[ours]["nll"]
        best = min(names, key=lambda name: mean(values[name]["nll"]))
        return Verdict(
            f"HVAE: a lower NLL than any VAE as large or larger, {words}, by more than the spread",
            clearly_better(hvae, values[best]["nll"]) and counts[ours] <= counts[best],
            f"{shown(hvae)} against {shown(values[best]['nll'])}",
        )

    return Result(
        name="hierarchy",
        title=TITLE,
        how=(
            "fashion10k binarised at half brightness, Bernoulli likelihood; the convolutional HVAE "
            "of `examples/hvae.yaml`, and flat VAEs of at least as many parameters: an MLP with "
            "two hidden layers, residual blocks that halve the image as often as the hierarchy "
            f"does, and an MLP with layers of {settings['far_larger']}. The example's training for "
            f"all: {epochs} epochs on {settings['train_samples']} images, KL warm-up, a cosine "
            "decay of the learning rate, an average of the weights; and again with "
            f"{settings['longer']} times as many epochs for all. Nats per image on "
            f"{settings['test_samples']} validation images, NLL importance-sampled with K = "
            f"{settings['nll_samples']}; mean ± standard deviation over {len(settings['seeds'])} "
            "seeds; lower is better. The HVAE is held against the VAE with the lowest mean NLL "
            "among those of each length."
        ),
        settings=settings,
        columns=["model", "parameters", "−ELBO", f"NLL (K = {settings['nll_samples']})"],
        rows=[
            [name, f"{counts[name]:,}", *(shown(found[m]) for m in METRICS)]
            for name, found in values.items()
        ],
        values={"parameters": counts, **values},
        verdicts=[
            beaten("HVAE", short, f"all trained for {epochs} epochs"),
            beaten(f"HVAE{longer}", long, f"all trained for {settings['longer'] * epochs}"),
            beaten("HVAE", long, f"which are trained {settings['longer']} times as long"),
        ],
        notes=[
            "K samples bound the NLL less tightly for the HVAE's many latent dimensions than for the VAEs' 20."
        ],
    )
