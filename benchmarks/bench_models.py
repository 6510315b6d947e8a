"""A training step of every model that pythae has too: ours by the engine, the same in plain PyTorch,
and pythae's, around the same networks (784-400-20, Adam, batches of binarised images).

"plain" is our model under the reference backend, with its loss, backward and optimizer in a loop.
pythae's step is that of its trainer, which reads the loss each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import vae_fast
from benchmarks import pythae_models
from benchmarks.bench_training import images
from benchmarks.case import OURS, Absence, Case, Contender, Outputs
from benchmarks.check import close
from benchmarks.pythae_models import PAIRS, Pair
from benchmarks.scratch import scratch
from vae_fast import models
from vae_fast.models.phases import phases_of
from vae_fast.train import Trainer
from vae_fast.train.config import from_dict
from vae_fast.train.distributed import Share

LATENT, HIDDEN, LEARNING_RATE = 20, [400], 1e-3
UNTIMED = 6  # of the engine's first steps: some are done twice, to record them and to compare
TOLERANCE = 0.03  # between first losses, whose noise differs


def binary() -> Tensor:
    """fashion10k's training images, binarised at half brightness: (10000, 1, 28, 28) bool.

    pythae's Hamiltonian VAE takes no grey images.
    """
    return images(10_000).unsqueeze(1) > 127


def _options(pair: Pair) -> dict[str, Any]:
    return {**pythae_models.options_of(pair, LATENT, HIDDEN), **pair.step}


class Engine:
    """Our engine's step of a model, with the phases it has."""

    def __init__(self, pair: Pair, batch: int, device: torch.device) -> None:
        config = from_dict(
            {
                "model": pair.model,
                "model_args": _options(pair),
                "objective": {"beta": pair.beta},
                "batch_size": batch,
                "lr": LEARNING_RATE,
                "device": str(device),
                "out": str(scratch(self) / "run"),
            }
        )
        data = binary()
        self.trainer = Trainer(config, train_data=data, val_data=data[:batch])
        self.trainer.model.train()

    def own(self, inputs: Sequence[Tensor]) -> Any:
        return Share(inputs[0], None)

    def step(self, share: Any) -> None:
        self.trainer.step(share, self.trainer.progress.step)
        self.trainer.progress.step += 1

    def outputs(self, _: Any) -> Outputs:
        loss = self.trainer.step.meter.read()[0]["loss"]
        first = self.own([binary()[: self.trainer.config.batch_size]])
        for _ in range(UNTIMED):
            self.step(first)
        return Outputs((torch.tensor(loss),), ())


class Plain:
    """The same model in a plain training loop, without our kernels."""

    def __init__(self, pair: Pair) -> None:
        torch.manual_seed(0)
        args = _options(pair)
        self.model, self.beta = models.build(pair.model, (1, 28, 28), **args), pair.beta
        self.parts = [
            ({} if p.name is None else {"phase": p.name},
             torch.optim.Adam(p.parameters, LEARNING_RATE * p.lr))
            for p in phases_of(self.model)
        ]  # fmt: skip

    def step(self, x: Tensor) -> float:
        total = 0.0
        with vae_fast.set_backend("reference"):
            for phase, optimizer in self.parts:
                optimizer.zero_grad()
                loss = self.model.loss(x, beta=self.beta, **phase).loss
                loss.backward()
                optimizer.step()
                total += loss.item()
        return total


def pythaes_step(pair: Pair, batch: int, model: nn.Module) -> Callable[[Tensor], None]:
    """A step of pythae's trainer around the networks of ``model``."""
    from pythae.data.datasets import BaseDataset

    theirs = pythae_models.theirs(pair, model)
    some = binary()[: 2 * batch].float()
    trainer = pythae_models.trainer(
        theirs,
        BaseDataset(some, torch.zeros(len(some))),
        str(scratch(theirs)),
        num_epochs=1,
        per_device_train_batch_size=batch,
        learning_rate=LEARNING_RATE,
    )
    theirs.train()

    def step(x: Tensor) -> None:
        found = trainer.model({"data": x}, epoch=1, dataset_size=10_000, uses_ddp=False)
        trainer._optimizers_step(found)
        found.loss.item()

    return step


def setup(
    shape: Sequence[int],
    pass_: str,
    dtype: str,
    device: torch.device,
    modes: Sequence[str],
    *,
    name: str,
) -> Case:
    (batch,), pair = shape, PAIRS[name]

    def inputs(seed: int) -> list[Tensor]:
        return [binary()[seed * batch : (seed + 1) * batch]]

    def contenders() -> list[Contender | Absence]:
        engine, plain = Engine(pair, batch, device), Plain(pair)
        found: list[Contender | Absence] = [
            Contender(OURS, engine.step, own=engine.own, outputs=engine.outputs),
            Contender("plain", plain.step, own=lambda s: s[0].float()),
        ]
        why = pythae_models.absence()
        if why is not None:
            return [*found, Absence("pythae", why)]
        step = pythaes_step(pair, batch, Plain(pair).model)
        return [*found, Contender("pythae", step, own=lambda s: s[0].float())]

    def check(given: Sequence[Tensor], outputs: Outputs) -> None:
        plain = Plain(pair)
        with torch.no_grad():
            right = plain.model.loss(given[0], beta=plain.beta).loss.item()
        close("the first loss", outputs.values[0].item(), right, TOLERANCE)

    return Case(
        f"model {name}", pass_, str(batch), dtype, batch * 784, 0, device, inputs, contenders, check,
        samples=batch, sets=8, memory=False,
    )  # fmt: skip


SETUPS = {f"model {name}": partial(setup, name=name) for name in PAIRS}

NAMES = (OURS, "plain", "pythae")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(1,), rounds=5, warmup_rounds=1)
