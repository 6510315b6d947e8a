"""Anomaly scores: how much x differs from the training data, in nats, higher for larger
differences."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_fast.functional.checks import check_count
from vae_fast.models.interface import Model
from vae_fast.tasks.batched import in_batches
from vae_fast.tasks.likelihood import elbo, importance_nll

SCORES = ("elbo", "nll", "reconstruction")


def anomaly_scores(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    score: str = "elbo",
    num_samples: int = 10,
    batch_size: int = 256,
) -> Tensor:
    """(N,) scores.

    Args:
        score: "elbo", the negative ELBO, averaged over ``num_samples`` draws; "nll",
            importance-sampled with ``num_samples`` draws; "reconstruction", -log p(x | z) at the
            posterior's mean.
    """
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    check_count("num_samples", num_samples)
    if score == "nll":
        return importance_nll(model, x, y, num_samples=num_samples, batch_size=batch_size)
    if score == "elbo":
        draws = [elbo(model, x, y, batch_size=batch_size).loss for _ in range(num_samples)]
        return torch.stack(draws).mean(0)

    def reconstruction(part: Tensor, *condition: Tensor) -> Tensor:
        return model.nll_at(part, model.features(part, *condition), *condition)

    return in_batches(model, reconstruction, x, y, batch_size=batch_size)


def anomaly_threshold(normal_scores: Tensor, quantile: float = 0.95) -> float:
    """The ``quantile`` of normal samples' scores; samples with higher scores count as anomalies."""
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
    if normal_scores.numel() == 0:
        raise ValueError("a threshold needs the scores of normal samples; there are none")
    if normal_scores.isnan().any():
        raise ValueError(
            "a score is NaN: leave its sample out, or look at the model's output for it"
        )
    # torch.quantile refuses more than 2^24 values.
    ordered = normal_scores.flatten().double().sort().values
    place = quantile * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
