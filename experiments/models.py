"""Every probabilistic model at equal networks and steps, beside pythae's: importance-sampled NLL."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import pythae_models
from benchmarks.pythae_models import PAIRS
from experiments.cells import gaps
from experiments.results import Result, Verdict
from experiments.statistics import not_worse, shown
from experiments.training import Clock, fashion, quiet, train
from vae_fast import evaluate, models
from vae_fast.data.arrays import ArrayData

TITLE = "Every probabilistic model, beside pythae's"
SETTINGS = {
    "seeds": [0, 1, 2],
    "epochs": 2,
    "batch_size": 128,
    "lr": 1e-3,
    "hidden": [200],
    "latent_dim": 10,
    "train_samples": 10_000,
    "test_samples": 100,
    "nll_samples": 200,
}
QUICK = {**SETTINGS, "seeds": [0], "epochs": 1, "batch_size": 32, "hidden": [8], "latent_dim": 3,
         "train_samples": 96, "test_samples": 8, "nll_samples": 10}  # fmt: skip

# pythae's models that are trained twice: corrected to follow the paper, beside ours, and as released.
RELEASED = {
    "Hamiltonian": (
        "pythae's HVAE draws z with standard deviation softplus(logvar), and its loss has the "
        "density of exp(logvar / 2), so the loss is not a bound on the likelihood. Beside ours it "
        "draws z with exp(logvar / 2); a row of its own has it as released."
    )
}
AS_RELEASED = "pythae as released"

# Models that pythae lacks, or has in another form.
ALONE: dict[str, dict[str, Any]] = {
    "VAE, mixture prior": {"model": "vae", "model_args": {"prior": "mixture"}},
    "VAE, RealNVP prior": {"model": "vae", "model_args": {"prior": "realnvp"}},
    "VAE, RealNVP posterior": {"model": "vae", "model_args": {"posterior": "realnvp"}},
    "IWAE, doubly reparameterised": {
        "model": "iwae",
        "model_args": {"num_samples": 8, "dreg": True},
    },
    "Hamiltonian, steps of 0.05": {
        "model": "vae",
        "model_args": {"objective": "hamiltonian", "objective_options": {"step": 0.05}},
    },
    "DIP-VAE-I": {"model": "vae", "model_args": {"objective": "dip-i"}},
    "DIP-VAE-II": {"model": "vae", "model_args": {"objective": "dip-ii"}},
}


def run(settings: dict[str, Any], clock: Clock) -> Result:
    data = fashion("train", binary=True, limit=settings["train_samples"])
    test = fashion("val", binary=True, limit=settings["test_samples"])
    absent = pythae_models.absence()
    values: dict[str, dict[str, list[float]]] = {name: {} for name in configs(settings)}
    # Seeds come first, so that an interrupted run has something of every row.
    for seed in settings["seeds"]:
        for name, config in configs(settings).items():

            def ours(config=config, seed=seed) -> float:
                return judge(train({**config, "seed": seed}, data, test), test, settings)

            def pythaes(name=name, seed=seed, released=False) -> float:
                return their_nll(name, settings, seed, data, test, released)

            sides = {"vae_fast": ours}
            if absent is None and name in PAIRS:
                sides["pythae"] = pythaes
                if name in RELEASED:
                    sides[AS_RELEASED] = partial(pythaes, released=True)
            for side, measure in sides.items():
                nll = clock.once(f"{name}, {side}, seed {seed}", measure)
                if nll is not None:
                    values[name].setdefault(side, []).append(nll)
            found = {side: round(v[-1], 2) for side, v in values[name].items()}
            clock.say(f"{name}, seed {seed}: {found}")
    return report(values, settings, absent)


def configs(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Our configurations by the table's row."""
    shared = {key: settings[key] for key in ("epochs", "batch_size", "lr")}
    given = settings["latent_dim"], settings["hidden"]
    found = {}
    for name, pair in PAIRS.items():
        if pair.nll:
            args = pythae_models.options_of(pair, *given)
            found[name] = {
                "model": pair.model,
                "model_args": args,
                "objective": {"beta": pair.beta},
            }
    for name, config in ALONE.items():
        args = {
            "latent_dim": given[0],
            "network_options": {"hidden": given[1]},
            **config["model_args"],
        }
        found[name] = {**config, "model_args": args}
    return {name: {**config, **shared} for name, config in found.items()}


def judge(model: nn.Module, test: ArrayData, settings: dict[str, Any]) -> float:
    """NLL in nats per image, on seeded noise."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        k = settings["nll_samples"]
        return float(evaluate.importance_nll(model, test.images, num_samples=k).mean())


def their_nll(
    name: str,
    settings: dict[str, Any],
    seed: int,
    data: ArrayData,
    test: ArrayData,
    released: bool = False,
) -> float:
    """The same networks from the same initial weights, trained by pythae's loss and trainer.

    ``released``: without the correction that ``RELEASED`` describes.
    """
    from pythae.data.datasets import BaseDataset

    pair = PAIRS[name]
    torch.manual_seed(seed)
    args = pythae_models.options_of(pair, settings["latent_dim"], settings["hidden"])
    ours = models.build(pair.model, tuple(data.shape), **args)
    theirs = pythae_models.theirs(pair, ours)
    if pair.theirs == "HVAE" and not released:
        draw = theirs._sample_gauss  # exp(softplus(v)) - 1 = exp(v)
        theirs._sample_gauss = lambda mu, std: draw(mu, torch.expm1(std).sqrt())
    x = data.images.float()
    with tempfile.TemporaryDirectory(prefix="vae-fast-pythae-") as folder, quiet():
        trainer = pythae_models.trainer(
            theirs,
            BaseDataset(x, torch.zeros(len(x))),
            folder,
            num_epochs=settings["epochs"],
            per_device_train_batch_size=settings["batch_size"],
            learning_rate=settings["lr"],
            seed=seed,
        )
        for epoch in range(1, settings["epochs"] + 1):
            trainer.train_step(epoch)
    if pair.nll == "theirs":
        with torch.random.fork_rng(), torch.no_grad(), quiet():
            torch.manual_seed(1234)
            k = settings["nll_samples"]
            return -float(theirs.eval().get_nll(test.images.float(), n_samples=k, batch_size=k))
    if pair.theirs == "VAMP":
        given = theirs.pseudo_inputs(theirs.idle_input).detach()
        prior = ours.learned_prior
        prior.points.data = given.view(-1, *data.shape).logit(1e-6) / prior.RATE
    return judge(ours.eval(), test, settings)


def report(values: dict[str, Any], settings: dict[str, Any], absent: str | None) -> Result:
    rows, verdicts = [], []
    both = ("vae_fast", "pythae") if absent is None else ("vae_fast",)
    counts = {
        f"{name}, {side}": len(found.get(side, ()))
        for name, found in values.items()
        for side in (both if name in PAIRS else both[:1])
    }
    if absent is None:
        counts |= {
            f"{name}, {AS_RELEASED}": len(values[name].get(AS_RELEASED, ())) for name in RELEASED
        }
    for name, found in values.items():
        if not found:
            continue
        theirs = found.get("pythae")
        missing = "not measured" if name in PAIRS else "none"
        rows.append([name, shown(found["vae_fast"], 2), shown(theirs, 2) if theirs else missing])
        if AS_RELEASED in found:
            rows.append([f"{name}, {AS_RELEASED}", "", shown(found[AS_RELEASED], 2)])
        if theirs and all(map(math.isfinite, theirs)):
            verdicts.append(
                Verdict(
                    f"{name}: NLL equal to pythae's or better, within the spread",
                    not_worse(found["vae_fast"], theirs),
                    f"{shown(found['vae_fast'], 2)} against {shown(theirs, 2)}",
                )
            )
    return Result(
        name="models",
        title=TITLE,
        how=(
            f"fashion10k binarised at half brightness ({settings['train_samples']} images to train "
            f"on), MLPs 784-{settings['hidden']}-{settings['latent_dim']}, Bernoulli likelihood, Adam "
            f"at {settings['lr']:g}, batches of {settings['batch_size']}, {settings['epochs']} epochs. "
            "pythae trains the same networks from the same initial weights with its own losses and "
            f"trainer. NLL in nats per image by K = {settings['nll_samples']} importance samples, on "
            f"{settings['test_samples']} validation images, lower is better, all by our evaluator but "
            "pythae's flows and Poincaré ball, which only its own can judge. For the Hamiltonian and "
            "Riemannian ones, samples come from the encoder's Gaussian. "
            f"{' '.join(RELEASED.values())} Mean ± standard deviation over "
            f"{len(settings['seeds'])} seeds."
        ),
        settings=settings,
        columns=["model", "vae_fast", "pythae"],
        rows=rows,
        values={
            name: {
                side: [v if math.isfinite(v) else None for v in vs] for side, vs in found.items()
            }
            for name, found in values.items()
        },
        verdicts=verdicts,
        notes=[*([] if absent is None else [absent]), *gaps(counts, len(settings["seeds"]))],
    )
