"""What makes a loss into an update of some parameters: backward, guard, optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.train.config import TrainConfig
from vae_fast.train.guard import Guard
from vae_fast.train.setup import build_optimizer


class Update:
    """Calling it with a loss changes ``parameters`` once, or skips the step; nothing waits.

    A model with several losses has one of these for each, over the parameters that the loss is to
    change; they may overlap. Between calls no parameter has a gradient.

    Args:
        config: its ``optimizer``, ``lr`` and ``precision`` are followed.
        is_distributed: the ranks' losses differ and their gradients don't: decide by gradients
            alone, which all ranks do alike.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        device: torch.device,
        *,
        is_distributed: bool = False,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer = build_optimizer(config, self.parameters)
        self.guard = Guard(config.optimizer, device)
        self.is_distributed = is_distributed

    def __call__(self, loss: Tensor, weight: float = 1.0) -> Tensor:
        """Returns whether the step was skipped, as a 0-d bool tensor on the device.

        Args:
            loss: 0-d, this process's, of the parameters' graph.
            weight: what the loss is multiplied by before backward.
        """
        (loss if weight == 1.0 else loss * weight).backward()
        seen = None if self.is_distributed else loss
        skipped = self.guard(self.optimizer, self.parameters, seen)
        self.optimizer.zero_grad()
        return skipped

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "guard": self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
