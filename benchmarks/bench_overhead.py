"""The engine's own time in a step: everything but forward, backward and optimizer.

The tutorial's VAE on all of Fashion-MNIST. Ours is the step as a run takes it, by the native runner
where there is one: its one call into compiled code is replaced by fixed numbers. (The gradient's norm
is part of that call: it is summed where the gradients are made.) Beside it the eager runner's, with
fixed gradients and loss and an optimizer that does nothing. Both leave gathering the batch, schedules,
noise keys, the decision to take the step, and metrics, which are read once per log interval as in the
trainer; the eager one the gradient's norm as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch

from benchmarks.bench_training import Engine, images
from benchmarks.case import OURS, Case, Contender, Outputs
from benchmarks.check import close
from vae_fast.backend import native_reason
from vae_fast.train.runners import Eager

COUNT = 60_000


EAGER = "ours, eager"


class WithoutModel(Engine):
    """The engine's step with a model whose forward and backward take no time."""

    def __init__(self, batch: int, dtype: str, device: torch.device) -> None:
        super().__init__(images(COUNT), batch, dtype, device)
        self.pass_ = self.endless()
        self.prepare()

    def prepare(self) -> None:
        step = self.trainer.step
        step.runner = Eager(step)
        self.update = step.updates[0]
        kept: dict[str, torch.Tensor] = {}
        follow = self.update.follow

        def keeping(*arguments: Any) -> Any:
            kept.setdefault("gradient", self.update.flat.whole.grad.clone())
            return follow(*arguments)

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
            self.trainer.batches.by_rows = self.trainer.step.takes_rows
            yield from self.shares(self.trainer.batches)

    def one(self, _: Any) -> None:
        self.step(next(self.pass_))
        if self.trainer.progress.step % self.trainer.config.log_every == 0:
            self.loss(), self.trainer.step.read_guards()


class WithoutCall(WithoutModel):
    """The native runner's step with a native call that takes no time."""

    def prepare(self) -> None:
        step = self.trainer.step
        self.step(next(self.pass_))
        runner = cast(Any, step.runner)
        found = runner._take(next(self.pass_), update=False)
        self.constant, self.norm = found.loss, found.norm
        self.loss(), step.read_guards()
        runner._native._native = Fixed(tuple(found))
        runner._needs_check = lambda: False


class Fixed(NamedTuple):
    """A stand-in for the compiled step: it returns ``terms`` and trains nothing."""

    terms: tuple[Any, ...]

    def take(self, _: Any) -> tuple[Any, ...]:
        return self.terms

    def weights_changed(self) -> None:
        pass


def setup_overhead(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    (batch,) = shape

    def contender(name: str, kind: type[WithoutModel]) -> Contender:
        engine = kind(batch, dtype, device)

        def outputs(_: Any) -> Outputs:
            found = torch.tensor([engine.loss(), engine.trainer.step.read_guards()["grad_norm"]])
            wanted = torch.tensor([engine.constant, engine.norm])
            return Outputs((found, wanted), ())

        return Contender(name, engine.one, own=lambda _: None, outputs=outputs)

    def contenders() -> list[Contender]:
        if device.type != "cpu" or native_reason("cpu") is not None:
            return [contender(OURS, WithoutModel)]
        return [contender(OURS, WithoutCall), contender(EAGER, WithoutModel)]

    def check(_: Sequence[torch.Tensor], outputs: Outputs) -> None:
        found, wanted = outputs.values
        for name, mine, right in zip(("loss", "norm"), found, wanted, strict=True):
            close(f"the {name} that the engine has read", mine.item(), right.item(), 1e-5)

    return Case(
        "overhead", pass_, str(batch), dtype, 1, 0, device, lambda _: [], contenders, check, sets=1,
        memory=False, note="a step without forward, backward and optimizer",
    )  # fmt: skip


SETUPS = {"overhead": setup_overhead}

NAMES = (OURS, EAGER)


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(10,), rounds=5, warmup_rounds=1)
