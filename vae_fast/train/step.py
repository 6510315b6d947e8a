"""One step of a run: schedules, objective, update, metrics; nothing here waits for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.train.average import WeightAverage
from vae_fast.train.captured import CapturedStep, CudaGraph
from vae_fast.train.config import TrainConfig
from vae_fast.train.distributed import Share, World
from vae_fast.train.meter import Meter
from vae_fast.train.schedules import Now, beta_at, lr_at
from vae_fast.train.setup import compile_networks, final_beta
from vae_fast.train.update import Update
from vae_fast.types import LossOutput


class Step:
    """Calling it with a batch updates the model once; ``meter`` gathers the loss's terms.

    Args:
        model: its ``forward`` is its loss.
        steps_per_epoch: what schedules in epochs and to the end of the run count by.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        device: torch.device,
        world: World,
        steps_per_epoch: int,
    ) -> None:
        self.model = model
        self.network = world.wrap(model, device, config)
        self.config = config
        self.device = device
        self.world = world
        self.steps_per_epoch = steps_per_epoch
        self.final_beta = final_beta(config)
        self.beta, self.lr = self.final_beta, config.lr
        if config.compile:
            compile_networks(model)
        parameters = list(model.parameters())
        self.update = Update(parameters, config, device, is_distributed=world.is_distributed)
        flat = self.update.flat
        self.average = WeightAverage(model, config.ema, flat) if config.ema > 0 else None
        self.meter = Meter(device, world)
        self.now = Now(device)
        # A small model's step takes a GPU less time than its launches take the host.
        self.captured: CapturedStep | None = None
        if device.type == "cuda" and flat is not None:
            self.captured = CapturedStep(self.take, CudaGraph())

    def __call__(self, share: Share, number: int) -> None:
        """Update the model by this rank's share of batch ``number`` of the run, from 0."""
        self.follow_schedules(number)
        if self.update.flat is None:  # it may turn out so at the first gradients
            self.captured = None
        run = self.take if self.captured is None else self.captured
        self.update.guard.record(*run(share))
        self.meter.samples += len(share.images)

    def take(self, share: Share) -> tuple[Any, Any]:
        """All of a step that is done on the device, in the same way at every step.

        What differs between steps is in ``now``, and on a GPU in tensors there, so that this can
        be captured in a CUDA graph and replayed. Returns what the guard is to remember.
        """
        terms = self.objective(share, self.now.beta)
        norm, skipped = self.update.take(terms.loss, share.weight)
        if self.average is not None:
            self.average.update(self.now.average_weight)
        self.meter.add(terms, len(share.images), skipped)
        return norm, skipped

    def objective(self, share: Share, beta: float | Tensor | None = None) -> LossOutput:
        """The loss and its terms, in nats per sample; the same in training and validation."""
        options: dict[str, Any] = {"beta": self.beta if beta is None else beta}
        if self.config.objective.free_bits > 0:
            options["free_bits"] = self.config.objective.free_bits
        labels = (share.labels,) if getattr(self.model, "uses_labels", False) else ()
        with self.update.objective(), self.autocast(), self.world.joined(share):
            return self.network(share.images, *labels, **options)

    def follow_schedules(self, number: int) -> None:
        """Set beta, the learning rate and the average's weight to those of step ``number``."""
        objective, optimizer = self.config.objective, self.config.optimizer
        self.beta = beta_at(objective, self.final_beta, number, self.steps_per_epoch)
        if optimizer.warmup_steps > 0 or optimizer.decay != "constant":
            total = self.config.epochs * self.steps_per_epoch
            self.lr = lr_at(optimizer, self.config.lr, number, total)
        weight = 0.0 if self.average is None else self.average.weight(number)
        self.now.set(self.beta, self.lr, weight)
        # Optimizers of all kinds know numbers; ours, over one buffer, tensors as well.
        self.update.set_lr(self.lr if self.update.flat is None else self.now.lr)

    def autocast(self) -> AbstractContextManager:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def averaged(self) -> AbstractContextManager:
        """The weights to validate and to show: the moving average, where there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def state_dict(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {
            "update": self.update.state_dict(),
            **average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)
