"""Names shared by every layer: the result of a loss and the reductions it comes in."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Reduction = Literal["none", "sum", "batchmean"]
# For functions that can also return every element's term, which plain PyTorch computes.
TermsReduction = Literal["none", "sum", "batchmean", "elementwise"]
GatherMode = Literal["bytes", "scale", "binarize"]

# The order is the native kernels' numbering (csrc/ops/args.h).
REDUCTIONS: tuple[Reduction, ...] = ("none", "sum", "batchmean")
GATHER_MODES: tuple[GatherMode, ...] = ("bytes", "scale", "binarize")


class LossOutput(NamedTuple):
    """The terms of a negative ELBO, in nats.

    ``loss = recon + beta * kl`` unless a model defines another; ``recon`` and ``kl`` are
    unweighted. Each is a scalar, or one value per sample with ``reduction="none"``.
    """

    loss: torch.Tensor
    recon: torch.Tensor
    kl: torch.Tensor
