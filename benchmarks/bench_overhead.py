"""The engine's own time in a step: everything but forward, backward and optimizer.

The tutorial's VAE on all of Fashion-MNIST, with fixed gradients and loss and an optimizer that does
nothing. This leaves gathering the batch, schedules, the gradient's norm, the decision to take the
step, and metrics, which are read once per log interval as in the trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.bench_training import Engine, images
from benchmarks.case import OURS, Case, Contender, Outputs
from benchmarks.check import close
from vae_fast.train.runners import Eager

COUNT = 60_000


class WithoutModel(Engine):
    """The engine's step with a model whose forward and backward take no time."""

    def __init__(self, batch: int, dtype: str, device: torch.device) -> None:
        super().__init__(images(COUNT), batch, dtype, device)
        step = self.trainer.step
        step.runner = Eager(step)
        self.update, self.pass_ = step.updates[0], self.endless()
        kept: dict[str, torch.Tensor] = {}
        follow = self.update.follow

        def keeping(loss: torch.Tensor) -> Any:
            kept.setdefault("gradient", self.update.flat.whole.grad.clone())
            return follow(loss)

        self.update.follow = keeping
        self.step(next(self.pass_))
        self.update.follow = follow
        self.norm = kept["gradient"].double().norm().item()
        terms = step.objective(next(self.pass_))
        terms = type(terms)(*(t.detach() for t in terms))
        self.constant = terms.loss.item()
        self.loss(), step.read_guards()
        step.differentiate = lambda share, phase, update: terms
        self.update.optimizer.step = lambda: None

    def endless(self) -> Iterator[Any]:
        while True:
            yield from self.shares(self.trainer.batches)

    def one(self, _: Any) -> None:
        self.step(next(self.pass_))
        if self.trainer.progress.step % self.trainer.config.log_every == 0:
            self.loss(), self.trainer.step.read_guards()


def setup_overhead(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    (batch,) = shape

    def contenders() -> list[Contender]:
        engine = WithoutModel(batch, dtype, device)

        def outputs(_: Any) -> Outputs:
            found = torch.tensor([engine.loss(), engine.trainer.step.read_guards()["grad_norm"]])
            wanted = torch.tensor([engine.constant, engine.norm])
            return Outputs((found, wanted), ())

        return [Contender(OURS, engine.one, own=lambda _: None, outputs=outputs)]

    def check(_: Sequence[torch.Tensor], outputs: Outputs) -> None:
        found, wanted = outputs.values
        for name, mine, right in zip(("loss", "norm"), found, wanted, strict=True):
            close(f"the {name} that the engine has read", mine.item(), right.item(), 1e-5)

    return Case(
        "overhead", pass_, str(batch), dtype, 1, 0, device, lambda _: [], contenders, check, sets=1,
        memory=False, note="a step without forward, backward and optimizer",
    )  # fmt: skip


SETUPS = {"overhead": setup_overhead}

NAMES = (OURS,)


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(10,), rounds=5, warmup_rounds=1)
