"""What makes a loss into an update of some parameters: backward, guard, optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.ops.parameter_buffers import using
from vae_fast.train.config import TrainConfig
from vae_fast.train.flat import FlatAdam, FlatParameters
from vae_fast.train.guard import Guard
from vae_fast.train.scaling import LossScale
from vae_fast.train.setup import build_optimizer
from vae_fast.train.sharded import shard_state


class Update:
    """Calling it with a loss changes ``parameters`` once, or skips the step; nothing waits.

    A model with several losses has one of these for each, over the parameters that the loss is to
    change; they may overlap. Between calls no parameter has a gradient.

    Args:
        config: its ``optimizer``, ``lr`` and ``precision`` are followed.
        is_distributed: the ranks' losses differ and their gradients don't: decide by gradients
            alone, which all ranks do alike.
        alone: no other Update has any of the parameters, which then may be moved into one buffer.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        device: torch.device,
        *,
        is_distributed: bool = False,
        alone: bool = True,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer: Any = build_optimizer(config, self.parameters)
        self._arguments = dict(self.optimizer.defaults)
        self.guard = Guard(config.optimizer, device)
        self.is_distributed = is_distributed
        self.scale = LossScale(device) if config.precision == "fp16" else None
        self.flat: FlatParameters | None = None
        # DistributedDataParallel has gradients in buffers of its own.
        can_be_flat = FlatAdam.serves(self.optimizer) and FlatParameters.fits(self.parameters)
        # There gradients of layers are written, not added: of a batch in parts, to those before.
        can_be_flat = can_be_flat and config.accumulate == 1
        if alone and not is_distributed and can_be_flat:
            half = config.precision == "bf16" and device.type == "cpu"
            self.flat = FlatParameters(self.parameters, torch.bfloat16 if half else None)
            self.optimizer = FlatAdam(self.flat, self.optimizer)

    def objective(self) -> using:
        """To compute a loss in: layers find what the step has prepared for them."""
        return using(None if self.flat is None else self.flat.prepare())

    def __call__(self, loss: Tensor, weight: float = 1.0) -> Tensor | bool:
        """Returns whether the step was skipped; on a GPU as a 0-d tensor there.

        Args:
            loss: 0-d, this process's, of the parameters' graph.
            weight: what the loss is multiplied by before backward.
        """
        norm, skipped = self.take(loss, weight)
        self.guard.record(norm, skipped)
        return skipped

    def take(self, loss: Tensor, weight: float = 1.0) -> tuple[Any, Any]:
        """The same, without remembering the outcome: the gradient's norm, and whether skipped."""
        self.backward(loss, weight)
        return self.follow(loss)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """The first half of ``take``: the loss's gradients, where the second half looks."""
        weighted = loss if weight == 1.0 else loss * weight
        (weighted if self.scale is None else weighted * self.scale.value).backward()
        if self.flat is not None and not self.flat.collect():
            self._take_apart()

    def follow(self, loss: Tensor) -> tuple[Any, Any]:
        """The second half: guard and optimizer, by the gradients as they are."""
        scale = None if self.scale is None else self.scale.value
        seen = None if self.is_distributed else loss
        parameters = self.parameters if self.flat is None else [self.flat.whole]
        norm, skipped = self.guard.take(self.optimizer, parameters, seen, scale)
        if self.scale is not None:
            self.scale.update(torch.as_tensor(norm).isfinite().logical_not_())
        self.optimizer.zero_grad()
        return norm, skipped

    def set_lr(self, lr: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        scale = {} if self.scale is None else {"scale": self.scale.state_dict()}
        return {
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            **scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.flat is not None and not self.optimizer.takes(state["optimizer"]):
            self._take_apart()
        self.optimizer.load_state_dict(shard_state(state["optimizer"], self.parameters))
        self.guard.load_state_dict(state["guard"])
        if self.scale is not None and "scale" in state:  # else it was another precision
            self.scale.load_state_dict(state["scale"])

    def follow_arguments(self, names: Iterable[str]) -> None:
        """Let the optimizer's arguments ``names`` be what the configuration says, not what was
        loaded."""
        for name in names:
            if name not in self.optimizer.defaults:
                raise ValueError(f"optimizer.args.{name} can't change when a run goes on")
            for group in self.optimizer.param_groups:
                group[name] = self._arguments[name]

    def _take_apart(self) -> None:
        """Some parameters have no gradient, which is not a gradient of zero: torch's Adam leaves
        those as they are, and counts the steps of each by itself."""
        self.optimizer, self.flat = self.optimizer.apart(), None
