"""Means of the loss's terms, kept on the device and read once per log interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.train.distributed import World
from vae_fast.types import LossOutput

TERMS = LossOutput._fields


class Meter:
    """Adds up per-sample means of batches, weighted by their sizes, without waiting.

    ``samples`` counts every sample that this process has seen; the means are over the added ones.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self.samples = 0
        self._world = world
        # Sums of the terms, and the number of added samples.
        self._sums = torch.zeros(len(TERMS) + 1, device=device, dtype=torch.float64)
        self._on_host = [0.0] * (len(TERMS) + 1)
        self._one = torch.ones((), device=device)
        self._zero = torch.zeros((), device=device)

    def add(self, terms: LossOutput, samples: int, skipped: Tensor | bool = False) -> None:
        """Add a batch's means (0-d tensors, nats per sample), unless ``skipped``.

        The device's decision to skip stays on the device, and so do the sums. The caller, or the
        code that replays this, counts ``samples``.
        """
        if isinstance(skipped, Tensor) or not self._sums.is_cpu:
            with torch.no_grad():
                values = torch.stack((*terms, self._one))
                if isinstance(skipped, Tensor):
                    values = torch.where(skipped, self._zero, values)
                self._sums.add_(values, alpha=samples)
        else:
            self.add_numbers([term.item() for term in terms], samples, skipped)

    def add_numbers(self, terms: Sequence[float], samples: int, skipped: bool = False) -> None:
        """The same for Python numbers."""
        if not skipped:
            for i, term in enumerate(terms):
                self._on_host[i] += term * samples
            self._on_host[-1] += samples

    def read(self) -> tuple[dict[str, float], int]:
        """The means since the last read, and the number of samples, over all ranks.

        This waits for the device and resets the meter. The means are NaN if nothing was added.
        """
        sums = torch.cat([self._total(), self._total().new_tensor([self.samples])])
        *terms, counted, samples = self._world.sum(sums).tolist()
        self._sums.zero_()
        self._on_host = [0.0] * len(self._on_host)
        self.samples = 0
        scale = 1.0 / counted if counted else float("nan")
        return {name: value * scale for name, value in zip(TERMS, terms, strict=True)}, int(samples)

    def _total(self) -> Tensor:
        return self._sums + self._sums.new_tensor(self._on_host)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._total().cpu(), "samples": self.samples}

    @staticmethod
    def of_all(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of one meter with the samples of all the given ones."""
        return {
            "sums": torch.stack([state["sums"] for state in states]).sum(0),
            "samples": sum(state["samples"] for state in states),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.zero_()
        self._on_host = [0.0] * len(self._on_host)
        if self._sums.is_cpu:
            self._on_host = state["sums"].tolist()
        else:
            self._sums.copy_(state["sums"])
        self.samples = state["samples"]
