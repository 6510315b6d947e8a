"""beta = 4 against beta = 1 on sprites: does a latent dimension encode one factor?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, error_of_difference, mean, shown
from experiments.training import Clock, train
from vae_fast import evaluate
from vae_fast.data import load
from vae_fast.data.arrays import ArrayData
from vae_fast.data.sprites import Sprites

TITLE = "beta-VAE on sprites"
SETTINGS = {
    "seeds": [0, 1, 2, 3, 4, 5],
    "betas": [1.0, 4.0],
    "train_samples": None,  # all
    "epochs": 3,
    "batch_size": 64,
    "hidden": [128, 128],
    "latent_dim": 10,
    "lr": 1e-3,
    "test_samples": 5000,
    "votes": 200,
}
QUICK = {**SETTINGS, "seeds": [0, 1], "train_samples": 256, "epochs": 1, "hidden": [16],
         "latent_dim": 3, "test_samples": 200, "votes": 10}  # fmt: skip


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = in_memory(load("sprites", split="train").shuffled(0), settings["train_samples"])
    test = sample_of("val", settings["test_samples"])
    values: dict[str, dict[str, list[float]]] = {}
    for beta in settings["betas"]:
        found = values.setdefault(str(beta), {"mig": [], "factor_vae": [], "recon": [], "kl": []})
        for seed in settings["seeds"]:
            config = {
                "model": "vae",
                "model_args": {
                    "latent_dim": settings["latent_dim"],
                    "network_options": {"hidden": settings["hidden"]},
                },
                "objective": {"beta": beta},
                "seed": seed,
                **{key: settings[key] for key in ("epochs", "batch_size", "lr")},
            }
            measured = judge(train(config, data, test), test, settings["votes"])
            clock.say(f"beta {beta}, seed {seed}: {measured}")
            for key, value in measured.items():
                found[key].append(value)
    return report(values, len(data), settings)


def in_memory(data: Sprites, count: int | None) -> ArrayData:
    """The first ``count`` sprites, drawn once for all epochs and seeds: 4 KiB each."""
    count = len(data) if count is None else min(count, len(data))
    images = torch.empty((count, *data.shape), dtype=data.dtype)
    labels = torch.empty(count, dtype=torch.int64)
    for part in torch.arange(count).split(4096):
        images[part], labels[part] = data.gather(part)
    return ArrayData(images, labels, data.name, data.provenance)


def sample_of(split: str, n: int) -> Sprites:
    """A fixed random choice of ``n`` sprites of a split."""
    rows = load("sprites", split=split).rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return Sprites(rows[order[:n]].sort().values)


def judge(model: nn.Module, test: Sprites, votes: int) -> dict[str, float]:
    """MIG and the FactorVAE score of the posterior's means, and the ELBO's parts in nats."""
    samples = torch.arange(len(test))
    x = test.gather(samples)[0]
    codes = evaluate.features(model, x)
    terms = evaluate.elbo(model, x)
    return {
        "mig": evaluate.mutual_information_gap(codes, test.factors(samples)),
        "factor_vae": evaluate.factor_vae_score_of_codes(codes, test.factors(samples), votes=votes),
        "recon": float(terms.recon.mean()),
        "kl": float(terms.kl.mean()),
    }


def report(values: dict[str, Any], count: int, settings: dict[str, Any]) -> Result:
    low, high = (values[str(beta)] for beta in settings["betas"])
    gain = mean(high["mig"]) - mean(low["mig"])
    claim = f"beta = {settings['betas'][1]:g}: a higher MIG than beta = {settings['betas'][0]:g}"
    measured = f"{shown(high['mig'], 3)} against {shown(low['mig'], 3)}"
    steps = settings["epochs"] * -(-count // settings["batch_size"])
    return Result(
        name="disentangle",
        title=TITLE,
        how=(
            f"sprites, 64×64, {count} images of the training split, "
            f"{settings['epochs']} epoch(s) ({steps} steps of {settings['batch_size']}), MLP "
            f"{settings['hidden']}, {settings['latent_dim']} latent dimensions, Bernoulli "
            "likelihood, constant beta. MIG (Chen et al. 2018) and the FactorVAE score (Kim & Mnih "
            f"2018, {settings['votes']} votes) of the posterior's means against the five factors, "
            f"on {settings['test_samples']} images of the validation split; higher is better. MIG "
            "cuts codes into 20 bins, so that codes which are the factors themselves reach 0.90. "
            "Reconstruction and KL in nats per image. Mean ± standard deviation over "
            f"{len(settings['seeds'])} seeds."
        ),
        settings=settings,
        columns=["beta", "MIG", "FactorVAE score", "reconstruction", "KL"],
        rows=[
            [
                beta,
                shown(found["mig"], 3),
                shown(found["factor_vae"], 3),
                shown(found["recon"], 1),
                shown(found["kl"], 1),
            ]
            for beta, found in values.items()
        ],
        values=values,
        verdicts=[
            Verdict(
                f"{claim}, by more than two standard errors",
                gain > 2.0 * error_of_difference(high["mig"], low["mig"]),
                measured,
            ),
            Verdict(
                f"{claim}, by more than the spread",
                clearly_better([-v for v in high["mig"]], [-v for v in low["mig"]]),
                measured,
            ),
        ],
    )
