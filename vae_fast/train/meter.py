"""Means of the loss's terms, kept on the device and read once per log interval."""

from __future__ import annotations

from typing import Any

import torch

from vae_fast.types import LossOutput

TERMS = LossOutput._fields


class Meter:
    """Adds up per-sample means of batches, weighted by their sizes, without synchronising."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(TERMS), dtype=torch.float32, device=device)
        self.samples = 0

    @torch.no_grad()
    def add(self, terms: LossOutput, samples: int) -> None:
        """Add a batch's means (0-d tensors, nats per sample) over ``samples`` samples."""
        self._sums.add_(torch.stack(terms), alpha=samples)
        self.samples += samples

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
        self.samples = state["samples"]

    def read(self) -> dict[str, float]:
        """The means since the last read, which synchronises and starts anew."""
        sums = self._sums.tolist()
        means = {name: value / self.samples for name, value in zip(TERMS, sums, strict=True)}
        self._sums.zero_()
        self.samples = 0
        return means
