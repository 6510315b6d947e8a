"""Normalizing flows by name: several steps, with the dimensions reversed between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count, check_counts
from vae_fast.networks.flows.autoregressive import Autoregressive, Coupling, Flow
from vae_fast.networks.flows.residual import Planar, Radial

FLOWS = ("planar", "radial", "maf", "iaf", "realnvp")


class Steps(Flow):
    """Flows in sequence; ``turned`` reverses the order of the dimensions between them."""

    steps: Any  # a ModuleList of flows

    def __init__(self, steps: Sequence[Flow], *, turned: bool = True) -> None:
        super().__init__()
        self.steps, self.turned = nn.ModuleList(steps), turned

    def forward(self, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(z[..., 0])
        for i, step in enumerate(self.steps):
            z, log_det = step(z.flip(-1) if i > 0 and self.turned else z, *context)
            total = total + log_det
        return z, total

    def inverse(self, y: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(y[..., 0])
        for i, step in reversed(list(enumerate(self.steps))):
            y, log_det = step.inverse(y, *context)
            y = y.flip(-1) if i > 0 and self.turned else y
            total = total + log_det
        return y, total


def make_flow(
    name: str, dim: int, *, steps: int = 4, hidden: Sequence[int] = (64, 64), context: int = 0
) -> Steps:
    """A flow by name, over vectors of ``dim``.

    Args:
        name: one of ``FLOWS``. maf (Papamakarios et al. 2017) and iaf (Kingma et al. 2016) are the
            same map: maf from data to noise, iaf from noise to data.
        steps: the number of flows.
        hidden: hidden sizes of each step's network; planar and radial flows have none.
        context: the number of features that condition the flow; calls take them after z.
    """
    if name not in FLOWS:
        raise ValueError(f"a flow must be one of {', '.join(FLOWS)}, got {name!r}")
    check_count("a flow's steps", steps)
    check_counts("hidden", hidden)
    if name in ("planar", "radial"):
        kind = Planar if name == "planar" else Radial
        return Steps([kind(dim, context) for _ in range(steps)], turned=False)
    made = Coupling if name == "realnvp" else Autoregressive
    return Steps([made(dim, hidden, context) for _ in range(steps)])
