"""Schedules of beta and the learning rate, as functions of the step alone."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from vae_fast.train.config import ObjectiveConfig, OptimizerConfig


def beta_at(objective: ObjectiveConfig, beta: float, step: int, steps_per_epoch: int) -> float:
    """The KL's weight at ``step`` (0 is the first), for a final value of ``beta``.

    constant; linear, from 0 to beta within the period (Bowman et al. 2016); cyclical, the same
    rise within the first ``ramp`` of every period, then beta (Fu et al. 2019).
    """
    if objective.schedule == "constant":
        return beta
    unit = steps_per_epoch if objective.unit == "epochs" else 1
    periods = step / (objective.period * unit)
    if objective.schedule == "cyclical":
        periods = (periods % 1.0) / objective.ramp
    return beta * min(1.0, periods)


def lr_at(optimizer: OptimizerConfig, lr: float, step: int, total_steps: int) -> float:
    """The learning rate at ``step`` (0 is the first) of ``total_steps``, for a peak of ``lr``.

    A linear rise over the first ``warmup_steps``, then constant, or a half cosine down to
    ``lr * final_lr`` at the end of the run (Loshchilov & Hutter 2017, without restarts).
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return lr * (step + 1) / warmup
    if optimizer.decay == "constant":
        return lr
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    lowest = lr * optimizer.final_lr
    return lowest + (lr - lowest) * 0.5 * (1.0 + math.cos(math.pi * done))


class ScheduleValues:
    """The schedules' values at the present step: numbers on the CPU, 0-d tensors on a GPU.

    A captured step reads the tensors at each replay. Only changed values are written, by a launch
    that carries the value, so nothing waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.beta: float | Tensor = math.nan
        self.lr: float | Tensor = math.nan
        self.average_weight: float | Tensor = math.nan
        self._values = (math.nan, math.nan, math.nan)
        if device.type != "cpu":
            self.on_device(device)

    def on_device(self, device: torch.device) -> None:
        """Keep the values in tensors on ``device``."""
        self.beta, self.lr, self.average_weight = torch.zeros(3, device=device).unbind()
        self._values = (math.nan, math.nan, math.nan)

    def set(self, beta: float, lr: float, average_weight: float) -> None:
        values = (beta, lr, average_weight)
        if not isinstance(self.beta, Tensor):
            self.beta, self.lr, self.average_weight = values
            return
        tensors = (self.beta, self.lr, self.average_weight)
        for tensor, value, before in zip(tensors, values, self._values, strict=True):
            if value != before:
                cast(Tensor, tensor).fill_(value)
        self._values = values
