"""Scores of decisions: AUROC and accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """P(a positive's score > a negative's), ties counted half: the area under the ROC curve.

    Args:
        scores: (N,), higher for likely positives. positive: bool (N,).
    """
    scores, positive = scores.flatten().double(), positive.flatten().bool()
    if scores.shape != positive.shape:
        raise ValueError(f"{len(scores)} scores, but {len(positive)} labels: they must be equal")
    if scores.isnan().any():
        raise ValueError(
            "a score is NaN: leave its sample out, or look at the model's output for it"
        )
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        raise ValueError(
            f"AUROC needs both kinds: there are {n_positive} positives and {n_negative} negatives"
        )
    # Mann-Whitney: ranks, with the mean rank for ties.
    _, tied, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2.0)[tied]
    u = ranks[positive].sum() - n_positive * (n_positive + 1) / 2.0
    return float(u / (n_positive * n_negative))


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """The fraction of correct predictions (N,), or of correct most probable classes (N, K)."""
    if predicted.dim() == 2:
        if predicted.isnan().any():  # which argmax would take for the largest
            raise ValueError("a class's probability is NaN: look at the model that predicts them")
        predicted = predicted.argmax(1)
    if predicted.shape != truth.shape or len(truth) == 0:
        raise ValueError(
            f"predictions {tuple(predicted.shape)} and truth {tuple(truth.shape)} must be equal "
            "in shape and not empty"
        )
    return float((predicted == truth).double().mean())
