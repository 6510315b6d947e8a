"""Evaluations that need labels: AUROC of anomaly scores, and accuracy at few labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.evaluate.scores import accuracy, auroc
from vae_fast.models.interface import Model, is_probabilistic
from vae_fast.tasks.anomaly import SCORES, anomaly_scores
from vae_fast.tasks.classify import linear_probe
from vae_fast.tasks.encode import features


def anomaly_auroc(
    model: Model,
    x: Tensor,
    labels: Tensor,
    normal: Sequence[int],
    *,
    num_samples: int = 10,
    batch_size: int = 256,
) -> dict[str, float]:
    """AUROC of each anomaly score of ``vae_fast.tasks``; samples of other classes are the
    anomalies.

    Args:
        labels: (N,), integers. normal: the classes that are no anomalies.
        num_samples: draws of the negative ELBO, and K of the importance-sampled NLL.

    A model without a density is judged by its reconstruction alone.
    """
    scores = SCORES if is_probabilistic(model) else ("reconstruction",)
    anomalous = ~torch.isin(labels, torch.tensor(list(normal), device=labels.device))
    if anomalous.all() or not anomalous.any():
        raise ValueError(
            f"AUROC needs normal samples and anomalies: of the labels "
            f"{sorted(set(labels.tolist()))}, normal are {sorted(normal)}"
        )
    options: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size}
    return {
        score: auroc(anomaly_scores(model, x, score=score, **options), anomalous)
        for score in scores
    }


def few_label_accuracy(
    model: Model,
    few: tuple[Tensor, Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
) -> float:
    """Accuracy on x (N, ...) of a linear probe of the model's features, fitted to ``few`` labels.

    Args:
        few: samples and their labels (n,), for example chosen by ``few_per_class``.
    """
    classes = int(max(few[1].max(), labels.max())) + 1
    codes = [features(model, part, batch_size=batch_size) for part in (few[0], x)]
    return accuracy(linear_probe(codes[0], few[1], classes)(codes[1]), labels)


def few_per_class(labels: Tensor, per_class: int, *, seed: int = 0) -> Tensor:
    """The positions of ``per_class`` samples of each class in labels (N,), drawn by ``seed``."""
    if per_class < 1:
        raise ValueError(f"labels per class must be at least 1, got {per_class}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = []
    for label in labels.unique().tolist():
        of_class = order[labels[order] == label]
        if len(of_class) < per_class:
            raise ValueError(
                f"{per_class} labels per class were asked for, class {label} has {len(of_class)}"
            )
        chosen.append(of_class[:per_class])
    return torch.cat(chosen)
