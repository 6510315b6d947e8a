"""From a loss to an update of parameters: backward, guard, optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.ops.parameter_buffers import using
from vae_fast.train.config import TrainConfig
from vae_fast.train.flat import FlatAdam, FlatParameters
from vae_fast.train.guard import Guard
from vae_fast.train.loss_scale import LossScale
from vae_fast.train.setup import build_optimizer
from vae_fast.train.sharded import shard_state


class Update:
    """A call with a loss updates ``parameters`` once or skips the step, without waiting for the
    device.

    A model with several losses has one Update per loss, with the parameters that this loss trains.
    Their parameters may overlap. Between calls no parameter has a gradient.

    Args:
        config: only ``optimizer``, ``lr`` and ``precision`` are used.
        is_distributed: skip steps by the gradients alone. Ranks have different losses and equal
            gradients, so all ranks then decide alike.
        alone: no other Update shares these parameters, so they may be moved into one buffer.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        device: torch.device,
        *,
        is_distributed: bool = False,
        alone: bool = True,
        names: Mapping[nn.Parameter, str] | None = None,
        phase: str | None = None,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer: Any
        self.optimizer, self._own = build_optimizer(config, self.parameters, names, phase)
        self._lr = float(config.optimizer.phases.get(phase or "", {}).get("lr", 1.0))
        self._arguments = dict(self.optimizer.defaults)
        self.guard = Guard(config.optimizer, device)
        self.is_distributed = is_distributed
        self.scale = LossScale(device) if config.precision == "fp16" else None
        self.flat: FlatParameters | None = None
        # DistributedDataParallel keeps gradients in its own buffers.
        can_be_flat = (
            not config.optimizer.groups
            and FlatAdam.serves(self.optimizer)
            and FlatParameters.fits(self.parameters)
        )
        # In the buffer, layers overwrite gradients. A batch taken in parts has to add them.
        can_be_flat = can_be_flat and config.accumulate == 1
        if alone and not is_distributed and can_be_flat:
            half = config.precision == "bf16" and device.type == "cpu"
            self.flat = FlatParameters(self.parameters, torch.bfloat16 if half else None)
            self.optimizer = FlatAdam(self.flat, self.optimizer)

    def objective(self) -> using:
        """Compute a loss within this block: layers then find the buffers that the step has
        prepared."""
        return using(None if self.flat is None else self.flat.prepare())

    def __call__(self, loss: Tensor, weight: float = 1.0, part: float = 1.0) -> Tensor | bool:
        """Returns whether the step was skipped, on a GPU as a 0-d tensor.

        Args:
            loss: this process's loss, 0-d, with the graph of the parameters.
            weight: what the loss is multiplied by before backward.
            part: as in ``Share.part``.
        """
        norm, skipped = self.take(loss, weight, part)
        self.guard.record(norm, skipped)
        return skipped

    def take(self, loss: Tensor, weight: float = 1.0, part: float = 1.0) -> tuple[Any, Any]:
        """The same without recording the outcome; returns the gradient's norm and whether the step
        was skipped."""
        self.backward(loss, weight)
        return self.follow(loss, part)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """The first half of ``take``: backward, with the gradients left for the second half."""
        weighted = loss if weight == 1.0 else loss * weight
        (weighted if self.scale is None else weighted * self.scale.value).backward()
        if self.flat is not None and not self.flat.collect():
            self._take_apart()

    def follow(self, loss: Tensor, part: float = 1.0) -> tuple[Any, Any]:
        """The second half of ``take``: guard and optimizer, with the present gradients.

        Args:
            part: as in ``Share.part``.
        """
        groups = self.optimizer.param_groups
        lrs = [group["lr"] for group in groups]
        # SGD's step is as long as the gradient already. Others' is not.
        if part != 1.0 and not isinstance(self.optimizer, torch.optim.SGD):
            for group in groups:
                group["lr"] = group["lr"] * part
        try:
            return self._follow(loss, part)
        finally:
            for group, lr in zip(groups, lrs, strict=True):
                group["lr"] = lr

    def _follow(self, loss: Tensor, part: float) -> tuple[Any, Any]:
        scale = None if self.scale is None else self.scale.value
        seen = None if self.is_distributed else loss
        parameters = self.parameters if self.flat is None else [self.flat.whole]
        norm, skipped = self.guard.take(self.optimizer, parameters, seen, scale, part)
        if self.scale is not None:
            self.scale.update(torch.as_tensor(norm).isfinite().logical_not_())
        self.optimizer.zero_grad()
        return norm, skipped

    def set_lr(self, lr: float | Tensor) -> None:
        for group, own in zip(self.optimizer.param_groups, self._own, strict=True):
            scale = self._lr * own.get("lr", 1.0)
            group["lr"] = lr if scale == 1.0 else lr * scale

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
        if self.scale is not None and "scale" in state:  # a run that changed its precision has none
            self.scale.load_state_dict(state["scale"])

    def apply_arguments(self, names: Iterable[str]) -> None:
        """Set the optimizer's arguments ``names`` to the configuration's values instead of the
        loaded ones."""
        for name in names:
            if name not in self.optimizer.defaults:
                raise ValueError(f"optimizer.args.{name} can't change when a run goes on")
            for group, own in zip(self.optimizer.param_groups, self._own, strict=True):
                if name not in own:
                    group[name] = self._arguments[name]

    def _take_apart(self) -> None:
        """Leave the flat buffer, because some parameter has no gradient. That differs from a
        gradient of zero: torch's Adam skips such parameters and counts the steps of each
        separately."""
        self.optimizer, self.flat = self.optimizer.unflattened(), None
