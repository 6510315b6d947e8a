"""Samples a second of a training step, on a quiet machine and beside busy processes.

    python -m benchmarks.bench_step [--busy 0 2 4 16] [--hidden 400] [--batch 128] [--precision bf16]
                                    [--only native jax]

The tutorial's VAE (784-hidden-20, Adam) over uint8 images in memory: the native step, the
engine's recorded step, torch.compile of the step that people write, and JAX's jitted scan. The
contenders take turns of about a second each; the result is the median of a contender's turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import jax_vae
from benchmarks.case import Absence
from vae_fast import models
from vae_fast.train import TrainConfig
from vae_fast.train.distributed import Share, World
from vae_fast.train.flat import FlatAdam, FlatParameters
from vae_fast.train.native import build
from vae_fast.train.step import Step

SETUPS: dict = {}  # no rows of the op benchmarks' table
NAMES: tuple[str, ...] = ()
PIXELS, LATENT = 784, 20

Epoch = Callable[[], int]  # trains through the images once; returns how many it went through


def model_of(hidden: int) -> nn.Module:
    torch.manual_seed(0)
    options = {"latent_dim": LATENT, "network_options": {"hidden": [hidden]}}
    return models.build("vae", (1, 28, 28), **options)


def native(images: Tensor, hidden: int, batch: int, precision: str) -> Epoch:
    model = model_of(hidden)
    flat = FlatParameters(list(model.parameters()))
    optimizer = FlatAdam(flat, torch.optim.Adam(flat.parameters, lr=1e-3, fused=True))
    step = build(model, optimizer, bf16=precision == "bf16")
    if isinstance(step, str):
        raise RuntimeError(step)  # noqa: TRY004

    def epoch() -> int:
        order = torch.randperm(len(images)).split(batch)
        for rows in order:
            step.step(images, index=rows, lr=1e-3)
        return len(images)

    return epoch


def recorded(images: Tensor, hidden: int, batch: int, precision: str) -> Epoch:
    config = TrainConfig(
        batch_size=batch, device="cpu", runner="recorded", precision=precision, emulate_bf16=True
    )
    made = Step(model_of(hidden), config, torch.device("cpu"), World(), len(images) // batch)
    number = 0

    def epoch() -> int:
        nonlocal number
        for rows in torch.randperm(len(images)).split(batch):
            made(Share(images[rows], None), number)
            number += 1
        made.meter.read()
        made.read_guards()
        return len(images)

    return epoch


def compiled(images: Tensor, hidden: int, batch: int, precision: str) -> Epoch:
    """The tutorial's training with the images in memory, under torch.compile."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = ((PIXELS, hidden), (hidden, 2 * LATENT), (LATENT, hidden), (hidden, PIXELS))
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1) / 255
            first, statistics, back, last = self.layers
            mu, logvar = statistics(torch.relu(first(x))).chunk(2, 1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            logits = last(torch.relu(back(z)))
            nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            return (nll - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()) / len(x)

    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss_of = torch.compile(model)

    def epoch() -> int:
        whole = len(images) // batch * batch  # batches of one size: another would be compiled anew
        for rows in torch.randperm(len(images))[:whole].split(batch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(images[rows])
            loss.backward()
            optimizer.step()
        return whole

    return epoch


def jax(images: Tensor, hidden: int, batch: int, precision: str) -> Epoch | Absence:
    array = images.flatten(1).numpy()
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    run = jax_vae.contender(array, batch, dtype, torch.device("cpu"), hidden)
    if isinstance(run, Absence):
        return run

    def epoch() -> int:
        run(None)
        return len(array) // batch * batch

    return epoch


CONTENDERS = {"native": native, "recorded": recorded, "torch.compile": compiled, "jax": jax}


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy(count: int):
    """Within the block, ``count`` single-threaded processes keep the machine busy."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        for _ in range(count):
            process = spawn.Process(target=_spin, daemon=True)
            process.start()
            stack.callback(process.kill)
        if count:
            time.sleep(3.0)  # they import first
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="*", default=[0])
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    ink = generator.random((args.images, 1, 28, 28)) < 0.25
    images = torch.as_tensor(generator.integers(0, 256, ink.shape, dtype=np.uint8) * ink)
    epochs = {}
    for name in args.only:
        made = CONTENDERS[name](images, args.hidden, args.batch, args.precision)
        if isinstance(made, Absence):
            print(f"{name}: {made.why}")
            continue
        made()  # compiles, records
        epochs[name] = made
    print(
        f"{args.precision}, hidden {args.hidden}, batch {args.batch}, "
        f"{torch.get_num_threads()} threads; samples/s"
    )
    for count in args.busy:
        speeds: dict[str, list[float]] = {name: [] for name in epochs}
        with busy(count):
            for _ in range(args.turns):
                for name, epoch in epochs.items():
                    began = time.perf_counter()
                    speeds[name].append(epoch() / (time.perf_counter() - began))
        row = ", ".join(f"{name} {median(found):,.0f}" for name, found in speeds.items())
        print(f"{count:2d} busy: {row}", flush=True)


if __name__ == "__main__":
    main()
