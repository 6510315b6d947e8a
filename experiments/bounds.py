"""VAE and IWAE against pythae's, and the IWAE against the VAE: ELBO and importance-sampled NLL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from experiments import pythae_side
from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, not_worse, shown
from experiments.training import Clock, fashion, train
from vae_fast import evaluate
from vae_fast.data.arrays import ArrayData

TITLE = "VAE and IWAE, beside pythae's"
SETTINGS = {
    "seeds": [0, 1, 2],
    "epochs": 5,
    "batch_size": 32,
    "num_samples": [10, 50],
    "hidden": 100,
    "latent_dim": 20,
    "train_samples": 10_000,
    "test_samples": 500,
    "nll_samples": 500,
}
QUICK = {
    "seeds": [0, 1],
    "epochs": 1,
    "batch_size": 32,
    "num_samples": [2, 3],
    "hidden": 8,
    "latent_dim": 2,
    "train_samples": 200,
    "test_samples": 20,
    "nll_samples": 10,
}
METRICS = ("negative_elbo", "nll")


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", binary=True, limit=settings["train_samples"])
    test = fashion("val", binary=True, limit=settings["test_samples"])
    absent = pythae_side.absence()
    trainers: dict[str, Callable[..., nn.Module]] = {
        "vae_fast": lambda config, seed: train({**config, "seed": seed}, data, test)
    }
    if absent is None:
        trainers["pythae"] = lambda config, seed: pythae_side.train(config, data, seed)
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    beside_ours = ("VAE", iwae(settings["num_samples"][0]))
    for name, config in configs(settings).items():
        for library, trained_by in trainers.items():
            if library == "pythae" and name not in beside_ours:
                continue  # it copies each target K times, and is slow for large K
            found = values.setdefault(name, {})[library] = {metric: [] for metric in METRICS}
            for seed in settings["seeds"]:
                measured = judge(trained_by(config, seed), test, settings["nll_samples"])
                clock.say(f"{name}, {library}, seed {seed}: {measured}")
                for metric in METRICS:
                    found[metric].append(measured[metric])
    return report(values, settings, absent)


def iwae(k: int) -> str:
    return f"IWAE, K = {k}"


def configs(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tutorial's networks, for the VAE and for the IWAEs."""
    args = {
        "latent_dim": settings["latent_dim"],
        "network_options": {"hidden": [settings["hidden"]]},
    }
    found = {"VAE": {"model": "vae", "model_args": args}}
    for k in settings["num_samples"]:
        found[iwae(k)] = {"model": "iwae", "model_args": {**args, "num_samples": k}}
    length = {key: settings[key] for key in ("epochs", "batch_size")}
    return {name: {**config, **length} for name, config in found.items()}


def judge(model: nn.Module, test: ArrayData, nll_samples: int) -> dict[str, float]:
    """-ELBO, averaged over ten draws of z, and NLL, in nats per image, on seeded noise."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        draws = [evaluate.elbo(model, test.images).loss.mean() for _ in range(10)]
        nll = evaluate.importance_nll(model, test.images, num_samples=nll_samples).mean()
    return {"negative_elbo": float(torch.stack(draws).mean()), "nll": float(nll)}


def report(values: dict[str, Any], settings: dict[str, Any], absent: str | None) -> Result:
    k = settings["nll_samples"]
    rows = [
        [name, library, *(shown(found[metric]) for metric in METRICS)]
        for name, libraries in values.items()
        for library, found in libraries.items()
    ]
    largest = iwae(settings["num_samples"][-1])
    verdicts = []
    for name, libraries in values.items():
        for metric, words in zip(METRICS, ("ELBO", "NLL"), strict=True):
            claim = f"{name}: {words} equal to pythae's or better, within the spread"
            if "pythae" in libraries:
                ours, theirs = libraries["vae_fast"][metric], libraries["pythae"][metric]
                measured = f"{shown(ours)} against {shown(theirs)}"
                verdicts.append(Verdict(claim, not_worse(ours, theirs), measured))
            elif absent is not None and name != largest:
                verdicts.append(Verdict(claim, None, "pythae absent"))
    tight, vae = (values[name]["vae_fast"]["nll"] for name in (largest, "VAE"))
    verdicts.append(
        Verdict(
            f"{largest}: a lower NLL than the VAE's, by more than the spread",
            clearly_better(tight, vae),
            f"{shown(tight)} against {shown(vae)}",
        )
    )
    return Result(
        name="bounds",
        title=TITLE,
        how=(
            f"fashion10k binarised at half brightness ({settings['train_samples']} images to train "
            f"on), MLPs 784-{settings['hidden']}-{settings['latent_dim']}, Bernoulli likelihood, "
            f"Adam at 1e-3, batches of {settings['batch_size']}, {settings['epochs']} epochs, the last "
            "epoch's weights. pythae trains the same networks from the same initial weights with its own losses and trainer. Our "
            f"evaluator judges all of them on {settings['test_samples']} validation images: nats "
            f"per image, lower is better, NLL importance-sampled with K = {k}; mean ± standard "
            f"deviation over {len(settings['seeds'])} seeds. Equal is: not worse by more than two "
            "standard errors of the difference."
        ),
        settings=settings,
        columns=["model", "trained by", "−ELBO", f"NLL (K = {k})"],
        rows=rows,
        values=values,
        verdicts=verdicts,
        notes=[] if absent is None else [absent],
    )
