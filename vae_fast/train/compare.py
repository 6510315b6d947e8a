"""Compare the run's training with common training loops, in turns, in one process."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vae_fast.backend import native_reason, set_backend
from vae_fast.extras import need
from vae_fast.models.interface import Model
from vae_fast.models.likelihoods import Bernoulli
from vae_fast.models.vae import BetaVAE
from vae_fast.train import rng
from vae_fast.train.display import ProgressBar
from vae_fast.train.distributed import Share, World
from vae_fast.train.native import plain_layers
from vae_fast.train.step import Step
from vae_fast.train.trainer import Trainer

TUTORIAL = "the tutorial's loop"
IN_MEMORY = "plain PyTorch, images in memory"
COMPILED = "the same under torch.compile"
FREE = 0.9  # cores that a training loop has at least on a machine which nobody else uses

Round = Callable[[], float]  # trains for a round; returns the mean loss, nats per sample


@dataclass
class Comparison:
    """Samples per second (median over rounds) and the mean training loss of each, ours last.

    ``absent`` says why a contender is missing. ``cores`` is how many CPU cores the process had on
    average, where the steps are the CPU's.
    """

    samples_per_second: dict[str, float]
    loss: dict[str, float]
    steps: int
    rounds: int
    absent: dict[str, str] = field(default_factory=dict)
    cores: float | None = None

    def __str__(self) -> str:
        work = f"{self.rounds} rounds of {self.steps} steps"
        lines = [f"The same training on this machine, in turns, {work}, median speed, mean loss:"]
        *others, ours = self.samples_per_second
        width = max(map(len, self.samples_per_second))
        for name, speed in self.samples_per_second.items():
            loss = f"{self.loss[name]:.2f} nats per sample"
            lines.append(f"  {name:{width}s}  {speed:10,.0f} samples/s   {loss}")
        lines += [f"  {name}: left out, {why}" for name, why in self.absent.items()]
        own = self.samples_per_second[ours]
        times = [f"{own / self.samples_per_second[name]:.2f} times {name}" for name in others]
        lines.append(f"  {ours}: " + ", ".join(times))
        if self.cores is not None and self.cores < FREE:
            lines.append(
                f"  Others were using this machine: the loops had {self.cores:.2f} CPU cores, so these "
                "numbers say little. Compare again when it is idle"
            )
        return "\n".join(lines)


def compare(
    trainer: Trainer, rounds: int = 5, steps: int = 40, compiled: bool = True
) -> Comparison:
    """Train copies of the run's model in alternating rounds, each by its own loop.

    The tutorial's loop reads images one by one through PIL and reads the loss at each step. Plain
    PyTorch with images in memory has the same model and loss without that loader; it also runs
    under torch.compile, which takes some 20 s before its first step. For a model of another kind
    than the tutorial's (linear layers, a Bernoulli likelihood, uint8 images), plain PyTorch is the
    run's own model and loop on the reference backend.

    Args:
        compiled: include torch.compile.

    The trainer is not changed. Raises RuntimeError, with the reason, without native kernels.
    """
    reason = native_reason(trainer.device.type)
    if reason is not None:
        raise RuntimeError(f"there are no native kernels to compare: {reason}")
    every_pass = chain.from_iterable(repeat(trainer.batches))
    batches = [
        Share(*batch).gathered() for batch in islice(every_pass, min(steps, len(trainer.batches)))
    ]
    work = list(islice(chain.from_iterable(repeat(batches)), steps))
    samples = sum(len(batch.images) for batch in work)
    made, absent = _contenders(trainer, work, compiled)
    speeds: dict[str, list[float]] = {name: [] for name in made}
    losses: dict[str, list[float]] = {name: [] for name in made}
    turns = [
        (number, name)
        for number in range(rounds + 1)
        for name in list(made)[:: 1 if number % 2 else -1]
    ]
    started, used = time.perf_counter(), time.process_time()
    with rng.forked(trainer.config.seed), ProgressBar("comparing", "turns") as bar:
        for done, (round_number, name) in enumerate(turns):
            bar.show(done, len(turns))
            _wait(trainer.device)
            began = time.perf_counter()
            losses[name].append(made[name]())
            _wait(trainer.device)
            if round_number > 0:  # the first round warms up
                speeds[name].append(samples / (time.perf_counter() - began))
    cores = (time.process_time() - used) / (time.perf_counter() - started)
    return Comparison(
        {name: statistics.median(values) for name, values in speeds.items()},
        {name: statistics.mean(values) for name, values in losses.items()},
        steps,
        rounds,
        absent,
        cores if trainer.device.type == "cpu" else None,
    )


def _contenders(
    trainer: Trainer, work: list[Any], compiled: bool
) -> tuple[dict[str, Round], dict[str, str]]:
    """The contenders, and for each missing one the reason."""
    images = torch.cat([batch.images for batch in work]).cpu()
    size = len(work[0].images)
    found: dict[str, Round] = {}
    absent: dict[str, str] = {}
    if _is_the_tutorials(trainer.model, images):
        loader = DataLoader(OneByOne(images), batch_size=size, shuffle=True)
        columns, device = math.prod(trainer.model.input_shape), trainer.device
        in_memory = images.to(device)

        def from_memory() -> Iterable[Tensor]:
            order = torch.randperm(len(images), device=device)
            return (in_memory[rows].flatten(1).float() / 255 for rows in order.split(size))

        def one_by_one() -> Iterable[Tensor]:
            return (x.view(-1, columns).to(device) for x in loader)

        found[TUTORIAL] = _plain(trainer, one_by_one, len(images))
        found[IN_MEMORY] = _plain(trainer, from_memory, len(images))
        if compiled:
            try:
                with rng.forked(trainer.config.seed):
                    found[COMPILED] = _plain(trainer, from_memory, len(images), compiled=True)
            except Exception as error:  # noqa: BLE001 - a compiler and much else lie behind this call
                text = str(error).strip() or type(error).__name__
                absent[COMPILED] = f"torch.compile does not work here: {text.splitlines()[0]}"
    else:
        with set_backend("reference"):
            eager = _step(trainer, "eager")

        def on_reference() -> float:
            with set_backend("reference"):
                return _round(eager, work)

        found[IN_MEMORY] = on_reference
    ours = _step(trainer, trainer.step.runner.name)
    found[f"vae_fast ({ours.runner.name} steps)"] = lambda: _round(ours, work)
    return found, absent


def _step(trainer: Trainer, runner: str) -> Step:
    config = replace(trainer.config, runner=runner)
    model = copy.deepcopy(trainer.model).train()
    return Step(model, config, trainer.device, World(), len(trainer.batches))


def _round(step: Step, work: list[Any]) -> float:
    for number, batch in enumerate(work):
        step(batch, number)
    step.read_guards()
    return step.meter.read()[0]["loss"]


class OneByOne(Dataset[Any]):
    """Images as torchvision's MNIST classes with ToTensor give them: each by itself, through PIL,
    to floats in [0, 1]."""

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self._from_array = need("PIL.Image", "the tutorial's loop").fromarray

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        picture = self._from_array(self._images[index, 0].numpy())
        grey = torch.from_numpy(np.array(picture, np.uint8, copy=True)).unsqueeze(-1)
        return grey.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class Plain(nn.Module):
    """The tutorial's VAE in plain PyTorch, from the run's sizes and weights: x in [0, 1] (N, D) to
    reconstruction, mu and logvar."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        layers = plain_layers(model)
        assert layers is not None  # the caller has checked this
        self.encoder, self.decoder = (nn.Sequential(*copy.deepcopy(part)) for part in layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return torch.sigmoid(self.decoder(z)), mu, logvar


def _plain(
    trainer: Trainer, batches: Callable[[], Iterable[Tensor]], count: int, compiled: bool = False
) -> Round:
    """The tutorial's loop: forward, loss, backward, Adam, and reading the loss."""
    model = Plain(trainer.model).to(trainer.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=trainer.config.lr)
    beta = trainer.step.beta

    def objective(x: Tensor) -> Tensor:
        made, mu, logvar = model(x)
        recon = F.binary_cross_entropy(made, x, reduction="sum")
        return recon - 0.5 * beta * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    loss_of = torch.compile(objective) if compiled else objective
    if compiled:  # here, where a failure is handled
        # torch warns here of a CUDA toolkit without a GPU. The comparison needs neither.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        loss_of(next(iter(batches()))).backward()

    def run() -> float:
        total = 0.0
        for x in batches():
            optimizer.zero_grad()
            loss = loss_of(x)
            (loss / len(x)).backward()
            total += loss.item()
            optimizer.step()
        return total / count

    return run


def _is_the_tutorials(model: Model, images: Tensor) -> bool:
    return (
        type(model) is BetaVAE
        and type(model.likelihood) is Bernoulli
        and images.dtype == torch.uint8
        and images.dim() == 4
        and images.shape[1] == 1
        and plain_layers(model) is not None
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
