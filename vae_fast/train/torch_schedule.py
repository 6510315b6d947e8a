"""torch's learning rate schedulers as functions of the step, usable by every runner.

The scheduler drives a separate optimizer without the model's weights, and this reads its learning
rate. Checkpoints save the scheduler's inputs instead of its state, and resuming replays them. So
the class may be any, and nothing is pickled.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vae_fast.import_paths import imported
from vae_fast.train.config import TrainConfig, total_steps

MODULE = "torch.optim.lr_scheduler"


class TorchSchedule:
    """The learning rate that ``optimizer.scheduler`` gives at a step.

    ReduceLROnPlateau gets each validation's loss; others count steps or epochs.

    Raises:
        ValueError: the name names no class, or no scheduler, or its arguments do not fit.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        name = config.optimizer.scheduler
        path = name if ":" in name else type(name)(f"{MODULE}:{name}")
        wanted = f"a subclass of {MODULE}.LRScheduler"
        self._kind = imported(path, "optimizer.scheduler", LRScheduler, wanted)
        self._config = config
        self._unit = steps_per_epoch if config.optimizer.scheduler_unit == "epochs" else 1
        length = -(-total_steps(config, steps_per_epoch) // self._unit)
        self._arguments = dict(config.optimizer.scheduler_args)
        takes = inspect.signature(self._kind).parameters
        for of_length in {"total_steps", "T_max"} & set(takes):
            self._arguments.setdefault(of_length, length)
        self.by_loss = issubclass(self._kind, ReduceLROnPlateau)
        self._losses: list[float] = []
        self._begin()

    def _begin(self) -> None:
        self._done = 0
        parameter = torch.nn.Parameter(torch.zeros(()))
        self._optimizer = torch.optim.SGD([parameter], lr=self._config.lr)
        try:
            self._scheduler: Any = self._kind(self._optimizer, **self._arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"optimizer.scheduler_args {self._arguments} don't fit "
                f"{self._config.optimizer.scheduler}: {error}"
            ) from error
        self._optimizer.step()  # an empty step: a scheduler warns if the optimizer has taken none

    def at(self, step: int) -> float:
        """The learning rate of ``step``, 0 for the first."""
        count = step // self._unit
        if not self.by_loss:
            if count < self._done:
                self._begin()
            for _ in range(self._done, count):
                self._scheduler.step()
            self._done = count
        return float(self._optimizer.param_groups[0]["lr"])

    def report_validation(self, loss: float) -> None:
        """Report a validation's loss to a scheduler that needs it."""
        if self.by_loss:
            self._losses.append(loss)
            self._scheduler.step(loss)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begin()
        self._losses = []
        for loss in state["losses"]:
            self.report_validation(loss)
