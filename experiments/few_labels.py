"""SSVAE with 100 labels against a classifier with only these labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.results import Result, Verdict
from experiments.statistics import clearly_better, shown
from experiments.training import Clock, fashion, train
from vae_fast import data as datasets
from vae_fast import models
from vae_fast.evaluate import accuracy
from vae_fast.tasks.batched import in_batches

TITLE = "SSVAE with 100 labels"
EXAMPLE = Path(__file__).parents[1] / "examples" / "ssvae.yaml"
SETTINGS = {"seeds": [0, 1, 2], "labels": 100, "epochs": None, "train_samples": 10_000,
            "test_samples": 2000, "classifier_steps": 300, "check_every": 20}  # fmt: skip
QUICK = {**SETTINGS, "seeds": [0, 1], "labels": 20, "epochs": 1, "train_samples": 200,
         "test_samples": 100, "classifier_steps": 40}  # fmt: skip
SSVAE, ALONE, LINEAR = "SSVAE", "its classifier, on the labelled images alone", "linear, on those"


def run(settings: dict[str, Any], clock: Clock) -> Result:
    import yaml

    example = yaml.safe_load(EXAMPLE.read_text())
    data = fashion("train", limit=settings["train_samples"])
    test = fashion("val", limit=settings["test_samples"])
    values: dict[str, list[float]] = {SSVAE: [], ALONE: [], LINEAR: []}
    for seed in settings["seeds"]:
        few = datasets.keep_labels(data, settings["labels"], seed=seed)
        shown_labels = few.labels >= 0
        x, y = few.images[shown_labels], few.labels[shown_labels]
        config = configured(example, settings, seed)
        model = train(config, keep_again(data, example, settings["labels"], seed), test)
        values[SSVAE].append(score(model.predict, model, test))
        torch.manual_seed(seed)
        fresh = models.build("ssvae", tuple(data.shape), **example["model_args"])
        steps, every = settings["classifier_steps"], settings["check_every"]
        values[ALONE].append(supervised(fresh.predict, fresh, x, y, test, steps, every))
        line = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10))

        def linear(part: Tensor, line: nn.Module = line) -> Tensor:
            return line(part.float() / 255.0).softmax(-1)

        values[LINEAR].append(supervised(linear, line, x, y, test, steps, every))
        clock.say(f"seed {seed}: " + ", ".join(f"{k} {v[-1]:.4f}" for k, v in values.items()))
    return report(values, settings, config["epochs"])


def configured(example: dict[str, Any], settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """The example's configuration; the seed chooses the labels here instead."""
    config = {key: value for key, value in example.items() if key != "labels"}
    return {**config, "seed": seed, "epochs": settings["epochs"] or example["epochs"]}


def keep_again(data: Any, example: dict[str, Any], keep: int, seed: int) -> Any:
    """Keep the labels that the classifiers see, repeated as in the example."""
    repeat = (example.get("labels") or {}).get("repeat", 1)
    return datasets.keep_labels(data, keep, seed=seed, repeat=repeat)


def score(predict: Any, model: nn.Module, test: Any) -> float:
    found = in_batches(model, lambda part, *_: predict(part).argmax(1), test.images)
    return accuracy(found, test.labels)


def supervised(
    predict: Any, model: nn.Module, x: Tensor, y: Tensor, test: Any, steps: int, every: int
) -> float:
    """The best test accuracy during training on x, y alone.

    Stopping at the best test accuracy is impossible in practice, so this favours the baseline.
    """
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    best = 0.0
    for step in range(1, steps + 1):
        model.train()
        optimizer.zero_grad()
        F.nll_loss(predict(x).clamp_min(1e-12).log(), y).backward()
        optimizer.step()
        if step % every == 0:
            best = max(best, score(predict, model, test))
    return best


def report(values: dict[str, list[float]], settings: dict[str, Any], epochs: int) -> Result:
    losses = {name: [1.0 - v for v in found] for name, found in values.items()}
    return Result(
        name="few_labels",
        title=TITLE,
        how=(
            f"fashion10k, grey, {settings['train_samples']} training images of which "
            f"{settings['labels']} keep their label, each class as often; `examples/ssvae.yaml` "
            f"for {epochs} epochs. The baselines see the labelled images alone, all of them at "
            "each step of Adam at 1e-3 with a weight decay of 1e-4: the SSVAE's own classifier "
            "with its encoder, and a linear classifier of the pixels. Of each baseline the best "
            f"of {settings['classifier_steps'] // settings['check_every']} looks at the test "
            "images counts, which favours it; of the SSVAE, the last epoch. Accuracy on "
            f"{settings['test_samples']} validation images, mean ± standard deviation over "
            f"{len(settings['seeds'])} seeds, each with labelled images of its own."
        ),
        settings=settings,
        columns=["trained", "accuracy"],
        rows=[[name, shown(found, 3)] for name, found in values.items()],
        values=values,
        verdicts=[
            Verdict(
                f"SSVAE: more accurate than {words}, by more than the spread",
                clearly_better(losses[SSVAE], losses[name]),
                f"{shown(values[SSVAE], 3)} against {shown(values[name], 3)}",
            )
            for name, words in (
                (ALONE, "its classifier on the labelled images alone"),
                (LINEAR, "a linear classifier"),
            )
        ],
    )
