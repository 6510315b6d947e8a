"""What keeps a codebook from collapse: how many codes a VQ-VAE uses with each remedy and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments.cells import gaps
from experiments.results import Result, Verdict
from experiments.statistics import mean, shown
from experiments.training import Clock, fashion, train

TITLE = "Codebook use of VQ-VAEs"
SETTINGS = {
    "seeds": [0, 1, 2],
    "train_samples": 10_000,
    "epochs": 5,
    "batch_size": 64,
    "lr": 1e-3,
    "size": 512,
    "code_dim": 16,
    "places": 16,
    "hidden": [256],
    "test_samples": 1000,
}
QUICK = {**SETTINGS, "seeds": [0], "train_samples": 128, "epochs": 1, "size": 16, "code_dim": 4,
         "hidden": [16], "test_samples": 32}  # fmt: skip
METRICS = ("code_perplexity", "codes_used", "nll", "mse")
HEADS = ("perplexity", "codes in use", "reconstruction, nats", "squared error per pixel")


def methods(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The quantiser's part of ``model_args`` by the table's row."""
    dim = settings["code_dim"]

    def vq(**options: Any) -> dict[str, Any]:
        sizes = {"size": settings["size"]}
        return {"quantizer": "vq", "quantizer_options": {**sizes, **options}, "code_dim": dim}

    off = {"kmeans": 0, "dead_below": 0.0}
    return {
        "gradient, no remedy": vq(update="gradient", **off),
        "EMA, no remedy": vq(**off),
        "EMA, k-means start": vq(dead_below=0.0),
        "EMA, dead codes replaced": vq(kmeans=0),
        "EMA, both (the default)": vq(),
        "gradient, both": vq(update="gradient"),
        "EMA, cosine, no remedy": vq(cosine=True, **off),
        "EMA, both, cosine": vq(cosine=True),
        "EMA, both, rotation trick": vq(rotation=True),
        "FSQ (8, 8, 8)": {
            "quantizer": "fsq",
            "quantizer_options": {"levels": [8, 8, 8]},
            "code_dim": 3,
        },
        "LFQ, 9 bits": {"quantizer": "lfq", "code_dim": 9},
        "LFQ, 9 bits, no entropy term": {
            "quantizer": "lfq",
            "quantizer_options": {"entropy": 0.0},
            "code_dim": 9,
        },
    }


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", limit=settings["train_samples"])
    test = fashion("val", limit=settings["test_samples"])
    network = {
        "network": "mlp",
        "network_options": {"hidden": settings["hidden"]},
        "places": settings["places"],
    }
    chosen = methods(settings)
    values = {name: {metric: [] for metric in METRICS} for name in chosen}
    # Seeds come first, so that an interrupted run has something of every row.
    for seed in settings["seeds"]:
        for name, method in chosen.items():
            config = {
                "model": "vq-vae",
                "model_args": {**network, **method},
                "seed": seed,
                **{key: settings[key] for key in ("epochs", "batch_size", "lr")},
            }

            def scores(config=config) -> dict[str, float]:
                return judge(train(config, data, test), test.images)

            measured = clock.once(f"{name}, seed {seed}", scores)
            clock.say(f"{name}, seed {seed}: {measured}")
            for key, value in (measured or {}).items():
                values[name][key].append(value)
    return report(values, settings)


@torch.no_grad()
def judge(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Use and perplexity of the images' codes, the loss in nats and the squared error per pixel."""
    parts = images.split(250)
    report = model.code_report(torch.cat([model.codes(x) for x in parts]))
    nll = torch.cat([model.loss(x, reduction="none").recon for x in parts])
    off = torch.cat([model.squared_error(x) for x in parts])
    measured = {**report, "nll": float(nll.mean()), "mse": float(off.mean())}
    return {metric: float(measured[metric]) for metric in METRICS}


def report(values: dict[str, Any], settings: dict[str, Any]) -> Result:
    digits = {"code_perplexity": 1, "codes_used": 3, "nll": 1, "mse": 4}
    counts = {name: len(found["nll"]) for name, found in values.items()}
    values = {name: found for name, found in values.items() if found["nll"]}

    def more(kept: str, bare: str, claim: str) -> Verdict:
        if kept not in values or bare not in values:
            return Verdict(claim, None, "not measured")
        ours, theirs = (values[name]["code_perplexity"] for name in (kept, bare))
        return Verdict(
            claim, mean(ours) > mean(theirs), f"{shown(ours, 1)} against {shown(theirs, 1)}"
        )

    return Result(
        name="codebook",
        title=TITLE,
        how=(
            f"fashion10k, grey ({settings['train_samples']} images to train on), MLPs of "
            f"{settings['hidden']} with {settings['places']} codes an image, {settings['size']} values of a code (512 for FSQ and LFQ), "
            f"{settings['epochs']} epochs of batches of {settings['batch_size']}, Adam at "
            f"{settings['lr']:g}, Bernoulli likelihood. Perplexity and use over the codes of "
            f"{settings['test_samples']} validation images: as if so many codes were in even use, and "
            f"the part of all values that came up. Mean ± standard deviation over "
            f"{len(settings['seeds'])} seeds."
        ),
        settings=settings,
        columns=["quantiser", *HEADS],
        rows=[
            [name, *(shown(found[m], digits[m]) for m in METRICS)] for name, found in values.items()
        ],
        values=values,
        verdicts=[
            more(
                "EMA, both (the default)",
                "EMA, no remedy",
                "k-means start and replaced dead codes: a higher perplexity than without",
            ),
            more(
                "LFQ, 9 bits",
                "LFQ, 9 bits, no entropy term",
                "LFQ: a higher perplexity with its entropy term than without",
            ),
        ],
        notes=gaps(counts, len(settings["seeds"])),
    )
