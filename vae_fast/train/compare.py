"""The same training on the native kernels and on plain PyTorch, side by side in one process."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch

from vae_fast.backend import native_reason, set_backend
from vae_fast.train import rng
from vae_fast.train.distributed import Share, World
from vae_fast.train.step import Step
from vae_fast.train.trainer import Trainer

BACKENDS = ("native", "reference")


@dataclass
class Comparison:
    """Samples per second (median over rounds) and the mean training loss of each backend."""

    samples_per_second: dict[str, float]
    loss: dict[str, float]
    steps: int
    rounds: int

    @property
    def ratio(self) -> float:
        return self.samples_per_second["native"] / self.samples_per_second["reference"]

    def __str__(self) -> str:
        work = f"{self.rounds} rounds of {self.steps} steps"
        lines = [f"Both backends in turns, {work}, median speed and mean loss:"]
        for name in BACKENDS:
            lines.append(
                f"  {name:9s}  {self.samples_per_second[name]:10,.0f} samples/s   "
                f"{self.loss[name]:.2f} nats per sample"
            )
        lines.append(f"  native is {self.ratio:.2f} times as fast")
        return "\n".join(lines)


def compare_backends(trainer: Trainer, rounds: int = 7, steps: int = 40) -> Comparison:
    """Train two copies of the run's model from here on, one per backend, in alternating rounds.

    The trainer is left as it is. Raises RuntimeError, with the reason, without native kernels.
    """
    reason = native_reason(trainer.device.type)
    if reason is not None:
        raise RuntimeError(f"there is no native backend to compare: {reason}")
    every_pass = chain.from_iterable(repeat(trainer.batches))
    batches = list(islice(every_pass, min(steps, len(trainer.batches))))
    work = list(islice(chain.from_iterable(repeat(batches)), steps))
    samples = sum(len(batch.images) for batch in work)
    copies = {
        name: Step(
            copy.deepcopy(trainer.model).train(),
            trainer.config,
            trainer.device,
            World(),
            len(trainer.batches),
        )
        for name in BACKENDS
    }
    speeds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    with rng.forked(trainer.config.seed):
        for round_number in range(rounds + 1):
            order = BACKENDS if round_number % 2 else BACKENDS[::-1]
            for name in order:
                seconds = _time(copies[name], work, name)
                if round_number > 0:  # the first warms up
                    speeds[name].append(samples / seconds)
    return Comparison(
        {name: statistics.median(values) for name, values in speeds.items()},
        {name: step.meter.read()[0]["loss"] for name, step in copies.items()},
        steps,
        rounds,
    )


def _time(step: Step, work: list, backend: str) -> float:
    with set_backend(backend):
        _wait(step.device)
        began = time.perf_counter()
        for number, batch in enumerate(work):
            step(Share(*batch), number)
        _wait(step.device)
        return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
