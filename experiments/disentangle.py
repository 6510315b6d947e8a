"""Objectives for independent latent dimensions, on sprites: does each represent one factor?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments.cells import gaps
from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, error_of_difference, mean, shown
from experiments.training import Clock, train
from vae_fast import evaluate
from vae_fast.data import load
from vae_fast.data.arrays import ArrayData
from vae_fast.data.sprites import Sprites
from vae_fast.evaluate import factors

TITLE = "Disentanglement on sprites"
SETTINGS = {
    "seeds": [0, 1, 2],
    "train_samples": 32_000,
    "epochs": 8,
    "batch_size": 64,
    "hidden": [128, 128],
    "latent_dim": 10,
    "lr": 1e-3,
    "test_samples": 5000,
    "votes": 400,
    # Kim & Mnih 2018 have a discriminator with 6 layers of 1000.
    "discriminator": [200, 200, 200],
}
QUICK = {**SETTINGS, "seeds": [0, 1], "train_samples": 256, "epochs": 1, "hidden": [16],
         "latent_dim": 3, "test_samples": 200, "votes": 10, "discriminator": [8]}  # fmt: skip
METRICS = ("mig", "factor_vae", "dci", "sap", "modularity", "recon", "kl")
HEADS = (
    "MIG",
    "FactorVAE score",
    "DCI disentanglement",
    "SAP",
    "modularity",
    "reconstruction",
    "KL",
)


def methods(settings: dict[str, Any], steps: int) -> dict[str, dict[str, Any]]:
    """Configurations by the table's row; the papers' hyperparameters."""

    def objective(name: str, **options: Any) -> dict[str, Any]:
        args = {"objective": name, "objective_options": options}
        return {"model": "vae", "model_args": args}

    return {
        "VAE (beta = 1)": {"model": "vae"},
        "beta-VAE (beta = 4)": {"model": "vae", "objective": {"beta": 4.0}},
        # The paper's gamma, and one for short runs: with 1000 and 4,000 steps the encoder reaches C
        # by shifting its means, the same for all images.
        **{
            f"capacity (C = 25, gamma = {gamma})": objective(
                "capacity", capacity=25.0, gamma=float(gamma), rise=steps // 3
            )
            for gamma in (1000, 50)
        },
        "beta-TCVAE (beta = 6)": {"model": "beta-tcvae", "objective": {"beta": 6.0}},
        "FactorVAE (gamma = 35)": objective("factor", gamma=35.0, hidden=settings["discriminator"]),
        "DIP-VAE-I (10, 100)": objective("dip-i", off=10.0, own=100.0),
        "DIP-VAE-II (10, 10)": objective("dip-ii", off=10.0, own=10.0),
    }


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = in_memory(load("sprites", split="train").shuffled(0), settings["train_samples"])
    test = sample_of("val", settings["test_samples"])
    few = in_memory(test, 256)  # drawn once: what the engine validates on
    steps = settings["epochs"] * -(-len(data) // settings["batch_size"])
    common = {
        "latent_dim": settings["latent_dim"],
        "network_options": {"hidden": settings["hidden"]},
    }
    chosen = methods(settings, steps)
    values = {name: {metric: [] for metric in METRICS} for name in chosen}
    # Seeds come first, so that an interrupted run has something of every row.
    for seed in settings["seeds"]:
        for name, method in chosen.items():
            config = {
                **method,
                "model_args": {**common, **method.get("model_args", {})},
                "seed": seed,
                **{key: settings[key] for key in ("epochs", "batch_size", "lr")},
            }

            def scores(config=config) -> dict[str, float]:
                return judge(train(config, data, few), test, settings["votes"])

            measured = clock.once(f"{name}, seed {seed}", scores)
            clock.say(f"{name}, seed {seed}: {measured}")
            for key, value in (measured or {}).items():
                values[name][key].append(value)
    return report(values, len(data), steps, settings)


def in_memory(data: Sprites, count: int | None) -> ArrayData:
    """The first ``count`` sprites, drawn once for all epochs and seeds: 4 KiB each."""
    count = len(data) if count is None else min(count, len(data))
    images = torch.empty((count, *data.shape), dtype=data.dtype)
    labels = torch.empty(count, dtype=torch.int64)
    for part in torch.arange(count).split(4096):
        images[part], labels[part] = data.gather(part)
    return ArrayData(images, labels, data.name, data.provenance)


def sample_of(split: str, n: int) -> Sprites:
    """The same ``n`` of a split's sprites every time."""
    rows = load("sprites", split=split).rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return Sprites(rows[order[:n]].sort().values)


def judge(model: nn.Module, test: Sprites, votes: int) -> dict[str, float]:
    """Scores of the posterior's means against the factors, and the ELBO's parts in nats."""
    samples = torch.arange(len(test))
    x, true = test.gather(samples)[0], test.factors(samples)
    codes = evaluate.features(model, x)
    terms = evaluate.elbo(model, x)
    return {
        "mig": evaluate.mutual_information_gap(codes, true),
        "factor_vae": evaluate.factor_vae_score_of_codes(codes, true, votes=votes),
        "dci": factors.dci(codes, true).disentanglement,
        "sap": factors.sap(codes, true),
        "modularity": factors.modularity(codes, true),
        "recon": float(terms.recon.mean()),
        "kl": float(terms.kl.mean()),
    }


def report(values: dict[str, Any], count: int, steps: int, settings: dict[str, Any]) -> Result:
    counts = {name: len(found["mig"]) for name, found in values.items()}
    values = {name: found for name, found in values.items() if found["mig"]}
    plain, *others = values
    verdicts = []
    for name in others:
        ours, base = values[name]["mig"], values[plain]["mig"]
        gain = mean(ours) - mean(base)
        several = min(len(ours), len(base)) > 1  # one seed has no standard error
        measured = f"{shown(ours, 3)} against {shown(base, 3)}"
        verdicts.append(
            Verdict(
                f"{name}: a higher MIG than beta = 1, by more than two standard errors",
                gain > 2.0 * error_of_difference(ours, base) if several else None,
                measured,
            )
        )
        if name.startswith("beta-VAE"):
            larger = clearly_better([-v for v in ours], [-v for v in base])
            claim = f"{name}: a higher MIG than beta = 1, by more than the spread"
            verdicts.append(Verdict(claim, larger if several else None, measured))
    digits = {"recon": 1, "kl": 1}
    return Result(
        name="disentangle",
        title=TITLE,
        how=(
            f"sprites, 64×64, {count} images of the training split, {settings['epochs']} epoch(s) "
            f"({steps} steps of {settings['batch_size']}), Adam at {settings['lr']:g}, MLP "
            f"{settings['hidden']}, {settings['latent_dim']} latent dimensions, Bernoulli likelihood. "
            "Weights are those of the papers, but for the gamma of 50; the capacity rises over the first third of the steps. "
            "The papers train for some 300,000 steps or more: this is a short run of all of them. "
            f"FactorVAE's discriminator has hidden layers of {settings['discriminator']}, and learns "
            "at the model's rate, as in its paper. MIG (Chen et al. 2018), the FactorVAE score (Kim "
            f"& Mnih 2018, {settings['votes']} votes), DCI (Eastwood & Williams 2018, lasso), SAP "
            "(Kumar et al. 2018) and modularity (Ridgeway & Mozer 2018) of the posterior's means "
            f"against the five factors, on {settings['test_samples']} images of the validation split; "
            "higher is better. MIG cuts codes into 20 bins, so that codes which are the factors "
            "themselves reach 0.90. Reconstruction and KL in nats per image. Mean ± standard "
            f"deviation over {len(settings['seeds'])} seeds."
        ),
        settings=settings,
        columns=["objective", *HEADS],
        rows=[
            [name, *(shown(found[metric], digits.get(metric, 3)) for metric in METRICS)]
            for name, found in values.items()
        ],
        values=values,
        verdicts=verdicts,
        notes=gaps(counts, len(settings["seeds"])),
    )
