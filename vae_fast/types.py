"""Names shared by every layer: the result of a loss and the reductions it comes in."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Reduction = Literal["none", "sum", "batchmean"]
# Where every element's term may be asked for: plain PyTorch computes it.
TermsReduction = Literal["none", "sum", "batchmean", "elementwise"]
GatherMode = Literal["bytes", "scale", "binarize"]

# The order is the native kernels' numbering (csrc/ops/args.h).
REDUCTIONS: tuple[Reduction, ...] = ("none", "sum", "batchmean")
GATHER_MODES: tuple[GatherMode, ...] = ("bytes", "scale", "binarize")


class LossOutput(NamedTuple):
    """The terms of a negative ELBO, in nats.

    ``loss = recon + beta * kl``, where a model says no other; ``recon`` and ``kl`` are reported
    unweighted. Each is a scalar, or one value per sample with ``reduction="none"``.
    """

    loss: torch.Tensor
    recon: torch.Tensor
    kl: torch.Tensor
