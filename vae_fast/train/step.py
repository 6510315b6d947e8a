"""One update of a model: forward, backward, optimizer, metrics; nothing here waits for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from vae_fast.data import Batch
from vae_fast.train.config import TrainConfig
from vae_fast.train.meter import Meter
from vae_fast.train.setup import final_beta
from vae_fast.types import LossOutput


class Step:
    """Calling it with a batch updates the model once; ``meter`` gathers the loss's terms."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.precision = config.precision
        self.beta = final_beta(config)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        self.meter = Meter(device)

    def __call__(self, batch: Batch) -> None:
        terms = self.objective(batch)
        terms.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.meter.add(terms, len(batch.images))

    def objective(self, batch: Batch) -> LossOutput:
        """The loss and its terms, in nats per sample; the same in training and validation."""
        with self.autocast():
            return self.model(batch.images, beta=self.beta)

    def autocast(self) -> AbstractContextManager:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.meter.load_state_dict(state["meter"])
