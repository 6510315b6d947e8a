"""Evaluate a run's model on its validation data, with a report in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast.data import Batches, SparseRows
from vae_fast.data.representative import representative_rows, take
from vae_fast.evaluate.disentanglement import factor_vae_score_of_codes, mutual_information_gap
from vae_fast.evaluate.factors import dci, modularity, sap
from vae_fast.evaluate.generated import feature_network, of_samples
from vae_fast.evaluate.labels import anomaly_auroc, few_label_accuracy, few_per_class
from vae_fast.evaluate.report import evaluate
from vae_fast.files import atomic_write
from vae_fast.import_paths import Trust
from vae_fast.models.interface import Classifies, uses_labels
from vae_fast.tasks import load_model
from vae_fast.tasks.encode import features
from vae_fast.train.config import data_of
from vae_fast.train.run_data import (
    class_names,
    in_support,
    label_of,
    labels_for,
    load_other,
    load_split,
    match_class_order,
)


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: str | int = "best",
    data: str | None = None,
    samples: int | None = None,
    num_samples: int = 100,
    device: str = "auto",
    seed: int = 0,
    normal: Sequence[int | str] = (),
    labels_per_class: int = 0,
    network: str | None = None,
    trust: Trust = False,
    data_options: Any = None,
) -> dict[str, Any]:
    """``evaluate`` on the run's validation data, also written to the run's evaluation.json.

    A binarised run is evaluated on the binarised images of its validation, and the report says so.

    Args:
        run: the folder that ``vae-fast train`` made. checkpoint: best, last or a step.
        data: another data set's name or file; then no file is written.
        data_options: how its image files are read (`DataOptions`); None uses the run's options.
        samples: the number of samples; all if None. They are the first ones, or evenly spaced if
            the data are sorted by class.
        num_samples: K of the importance-sampled NLL; 0 leaves it out.
        normal: the normal classes, by number or name; adds the AUROC of each anomaly score.
        labels_per_class: adds the accuracy of a linear probe of the features, fitted to this number
            of labels per class of the run's training data; 0 leaves it out.
        network: as for ``feature_network``; adds the Fréchet distance, precision and recall between
            the data and as many samples of the model, over its features.
        trust: as in ``load_model``.

    For data with ground-truth factors (sprites), random samples instead of the first ones are used,
    and MIG, the FactorVAE score, DCI, SAP and modularity are added.
    """
    restored = load_model(run, checkpoint, device, trust=trust)
    source = data_of(restored.config) if data is None else data
    if data is None:
        loaded = load_split(restored.config, "val")
    else:
        loaded = load_other(restored.config, source, data_options)
    loaded = in_support(restored.model, loaded)
    factors = getattr(loaded, "factors", None)
    if factors is not None:
        loaded = loaded.shuffled(seed)
        factors = loaded.factors
    config = restored.config
    x, y = gather(
        loaded,
        samples,
        binarize=config.binarize != "none",
        seed=config.seed,
        rows=representative_rows(loaded, samples),
    )
    classes = class_names(config)
    y = match_class_order(y, loaded.classes, classes)
    y = labels_for(restored.model, config.model, y, str(source))
    wanted = [label_of(str(name), classes) for name in normal]
    expected = tuple(restored.model.input_shape)
    if tuple(x.shape[1:]) != expected:
        raise ValueError(
            f"{source} has samples of shape {tuple(x.shape[1:])}, the model takes {expected}"
        )
    report: dict[str, Any] = {
        "model": restored.config.model,
        "data": str(source),
        **binarized(config),
        "step": restored.step,
        **evaluate(restored.model, x, y, num_samples=num_samples, seed=seed),
    }
    if factors is not None:
        report |= _disentanglement(restored.model, x, y, factors(torch.arange(len(x))), seed)
    report |= _with_labels(restored, x, y, wanted, labels_per_class, seed)
    if network is not None:
        report |= of_samples(restored.model, feature_network(network, device), x, y, seed=seed)
    if data is None:
        with atomic_write(Path(run) / "evaluation.json") as file:
            file.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _disentanglement(
    model: Any, x: Tensor, y: Tensor | None, factors: Tensor, seed: int
) -> dict[str, float]:
    codes = features(model, x, y).cpu()
    if codes.shape[1] < 2:
        return {}
    return {
        "mig": mutual_information_gap(codes, factors),
        "factor_vae_score": factor_vae_score_of_codes(codes, factors, seed=seed),
        "sap": sap(codes, factors),
        "modularity": modularity(codes, factors),
        **{f"dci_{name}": value for name, value in dci(codes, factors)._asdict().items()},
    }


def _with_labels(
    restored: Any,
    x: Tensor,
    y: Tensor | None,
    normal: Sequence[int],
    labels_per_class: int,
    seed: int,
) -> dict[str, Any]:
    """Measures that need labels: AUROC of anomaly scores, accuracy of a probe at few labels."""
    if not normal and not labels_per_class:
        return {}
    if y is None:
        raise ValueError(
            "AUROC and accuracy at few labels need labels, and these data have none: give labelled "
            "data, or leave normal and labels_per_class out"
        )
    classifies = isinstance(restored.model, Classifies)
    if uses_labels(restored.model) and not classifies:
        raise ValueError(
            f"{restored.config.model} is given the labels: AUROC and accuracy at few labels are for "
            "models that see samples alone. Leave normal and labels_per_class out"
        )
    found: dict[str, Any] = {}  # the model gets no labels: a classifier explains x alone
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if normal:
            scores = anomaly_auroc(restored.model, x, y, normal)
            found |= {f"auroc_{score}": value for score, value in scores.items()}
        if labels_per_class:
            config = restored.config
            seen, labels = gather(
                load_split(config, "train"),
                binarize=config.binarize != "none",
                seed=config.seed,
            )
            assert labels is not None  # checked above: few labels are of data that have them
            chosen = few_per_class(labels, labels_per_class, seed=seed)
            few = (seen[chosen], labels[chosen])
            found["labels_per_class"] = labels_per_class
            found["few_label_accuracy"] = few_label_accuracy(restored.model, few, x, y)
    return found


def binarized(config: Any) -> dict[str, str]:
    """The report's entry about binarisation, since numbers of two draws cannot be compared."""
    if config.binarize == "none":
        return {}
    return {"binarized": f"Bernoulli(x / 255), drawn with seed {config.seed}"}


def gather(
    data: Any,
    samples: int | None = None,
    *,
    binarize: bool = False,
    seed: int = 0,
    keep_sparse: bool = False,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The first ``samples`` samples of data, or these rows, and their labels if all have one.

    With ``binarize`` they are the validation images of training with this seed. ``keep_sparse``
    keeps the rows of a sparse matrix sparse.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if keep_sparse and isinstance(getattr(data, "images", None), SparseRows):
        end = len(data) if samples is None else samples
        some = data.slice(0, end) if rows is None else data.select(rows)
        return some.images, some.labels
    batches = Batches(data, 512, shuffle=False, binarize=binarize, seed=seed)
    return tuple(take(batches, samples, rows))


def as_text(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    width = max(map(len, report))
    lines = []
    for key, value in report.items():
        if isinstance(value, float):
            value = f"{value:.4f}"
        elif isinstance(value, list):
            value = " ".join(f"{v:.2f}" for v in value[:20]) + (" ..." if len(value) > 20 else "")
        lines.append(f"{key:{width}s}  {value}")
    return "\n".join(lines)
