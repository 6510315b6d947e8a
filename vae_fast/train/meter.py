"""Means of the loss's terms, kept on the device and read once per log interval."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast.train.distributed import World
from vae_fast.types import LossOutput

TERMS = LossOutput._fields


class Meter:
    """Adds up per-sample means of batches, weighted by their sizes, without waiting.

    ``samples`` counts every sample seen by this process; the means are over those added.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self.samples = 0
        self._world = world
        self._sums = torch.zeros(len(TERMS) + 1, device=device)  # the last counts samples
        self._one = torch.ones((), device=device)
        self._zero = torch.zeros((), device=device)

    @torch.no_grad()
    def add(self, terms: LossOutput, samples: int, skipped: Tensor | None = None) -> None:
        """Add a batch's means (0-d tensors, nats per sample), unless ``skipped`` is true.

        This is the device's part; ``samples`` is counted by who calls this, or replays it.
        """
        values = torch.stack((*terms, self._one))
        if skipped is not None:
            values = torch.where(skipped, self._zero, values)
        self._sums.add_(values, alpha=samples)

    def read(self) -> tuple[dict[str, float], int]:
        """The means since the last read, and the samples added, of all ranks.

        This waits for the device and starts anew. The means are NaN if nothing was counted.
        """
        sums = torch.cat([self._sums, self._one[None] * self.samples]).double()
        *terms, counted, samples = self._world.sum(sums).tolist()
        self._sums.zero_()
        self.samples = 0
        scale = 1.0 / counted if counted else float("nan")
        return {name: value * scale for name, value in zip(TERMS, terms, strict=True)}, int(samples)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
        self.samples = state["samples"]
