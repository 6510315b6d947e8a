"""Classes from features and a few labels: a linear probe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional.checks import check_finite


class LinearProbe(nn.Module):
    """Standardised features (N, D) to class probabilities (N, num_classes)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        return self.linear((features - self.mean) / self.scale).softmax(-1)


def linear_probe(
    features: Tensor, labels: Tensor, num_classes: int | None = None, *, penalty: float = 1e-2
) -> LinearProbe:
    """Logistic regression on features (N, D) with labels (N,), fitted to convergence by L-BFGS.

    Args:
        penalty: weight of the squared weights, per sample; it prevents memorising a few labels.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"features must be (N, D) and labels (N,), N of 1 or more, got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    check_finite("features", features)
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError("a label is negative: leave unlabelled samples out")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if int(labels.max()) >= classes:
        raise ValueError(
            f"label {int(labels.max())} is out of range for num_classes={classes}: labels are 0 to "
            f"{classes - 1}"
        )
    mean = features.mean(0)
    scale = features.std(0, correction=0).clamp_min(1e-6)
    linear = nn.Linear(features.shape[1], classes).to(features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    x = ((features - mean) / scale).detach()
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(linear(x), labels) + penalty * linear.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearProbe(mean, scale, linear.requires_grad_(False))
