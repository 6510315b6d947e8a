"""The hierarchical VAE against a flat VAE with as many parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bounds import METRICS, judge
from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, shown
from experiments.training import Clock, fashion, parameters, train
from vae_fast import models

TITLE = "HVAE and VAE of the same parameter count"
EXAMPLE = Path(__file__).parents[1] / "examples" / "hvae.yaml"
SETTINGS = {
    "seeds": [0, 1, 2],
    "epochs": 10,
    "train_samples": 10_000,
    "test_samples": 500,
    "nll_samples": 100,
    "hvae": {},
}
QUICK = {**SETTINGS, "seeds": [0, 1], "epochs": 1, "train_samples": 200, "test_samples": 20,
         "nll_samples": 5, "hvae": {"width": 8, "z_channels": 2, "hidden": [8]}}  # fmt: skip


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", binary=True, limit=settings["train_samples"])
    test = fashion("val", binary=True, limit=settings["test_samples"])
    values: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for name, config in configs(settings, tuple(data.shape)).items():
        found = values.setdefault(name, {metric: [] for metric in METRICS})
        for seed in settings["seeds"]:
            model = train({**config, "seed": seed}, data, test)
            counts[name] = parameters(model)
            measured = judge(model, test, settings["nll_samples"])
            clock.say(f"{name}, {counts[name]:,} parameters, seed {seed}: {measured}")
            for metric in METRICS:
                found[metric].append(measured[metric])
    return report(values, counts, settings)


def configs(settings: dict[str, Any], shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """examples/hvae.yaml, and the VAE beside it, trained alike: KL warm-up, epochs, batches."""
    import yaml

    example = yaml.safe_load(EXAMPLE.read_text())
    example["model_args"].update(settings["hvae"])
    hvae = models.build("hvae", shape, **example["model_args"])
    common = {key: example[key] for key in ("objective", "batch_size", "lr") if key in example}
    common["epochs"] = settings["epochs"]
    args = vae_of_size(parameters(hvae), shape)
    return {
        "HVAE": {"model": "hvae", "model_args": example["model_args"], **common},
        "VAE": {"model": "vae", "model_args": args, **common},
    }


def vae_of_size(count: int, shape: tuple[int, ...], latent_dim: int = 20) -> dict[str, Any]:
    """A VAE's model_args with ``count`` parameters or a few more: two hidden layers of one width."""

    def args(hidden: int) -> dict[str, Any]:
        return {"latent_dim": latent_dim, "network_options": {"hidden": [hidden, hidden]}}

    low, high = 1, 2
    while parameters(models.build("vae", shape, **args(high))) < count:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = parameters(models.build("vae", shape, **args(middle))) >= count
        low, high = (low, middle) if enough else (middle, high)
    return args(high)


def report(values: dict[str, Any], counts: dict[str, int], settings: dict[str, Any]) -> Result:
    hvae, vae = values["HVAE"]["nll"], values["VAE"]["nll"]
    return Result(
        name="hierarchy",
        title=TITLE,
        how=(
            "fashion10k binarised at half brightness, Bernoulli likelihood; the HVAE of "
            "`examples/hvae.yaml`, and a VAE with two hidden layers whose width gives it at least "
            f"as many parameters; the example's KL warm-up for both, {settings['epochs']} epochs "
            f"on {settings['train_samples']} images. Nats per image on {settings['test_samples']} "
            f"validation images, NLL importance-sampled with K = {settings['nll_samples']}; mean ± "
            f"standard deviation over {len(settings['seeds'])} seeds; lower is better."
        ),
        settings=settings,
        columns=["model", "parameters", "−ELBO", f"NLL (K = {settings['nll_samples']})"],
        rows=[
            [name, f"{counts[name]:,}", *(shown(found[m]) for m in METRICS)]
            for name, found in values.items()
        ],
        values={"parameters": counts, **values},
        verdicts=[
            Verdict(
                "HVAE: a lower NLL than the VAE's of the same size, by more than the spread",
                clearly_better(hvae, vae) and counts["HVAE"] <= counts["VAE"],
                f"{shown(hvae)} against {shown(vae)}",
            )
        ],
    )
