"""Training from disk: steps on sprites in shards, compared with the same data in memory.

The model is the tutorial's (4096-400-20, Adam, batch 128). Its steps are short, so the reader's
cost is most visible. A reading is `STEPS` steps of an endless stream of epochs, longer than a
window lasts, so that it includes reading the next window. The memory peak is that of a separate
process (`resident_memory`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_training import HIDDEN, LATENT, LEARNING_RATE, plain_update, tutorial
from benchmarks.case import OURS, Absence, Case, Contender, Outputs
from benchmarks.check import close
from benchmarks.scratch import scratch
from vae_fast.data import ArrayData, ShardData, open_shards, pack
from vae_fast.data.sprites import COUNT, SIDE, Sprites
from vae_fast.train import TrainConfig, Trainer

IN_MEMORY = "in memory"
STEPS = 300
# The order differs, and so does the loss of the first steps, by less than this.
TOLERANCE = 0.05
VALIDATION = 128  # images, which the trainer wants and nothing here reads


@cache
def shards(count: int) -> ShardData:
    """``count`` sprites as shards in a folder that lives as long as the process."""
    return pack(sprites(count), scratch() / "sprites")


def sprites(count: int) -> Sprites:
    """Every ``COUNT / count``-th image: all shapes and positions, for any count."""
    return Sprites(torch.arange(count) * COUNT // count)


def trainer_of(data: Any, batch: int, dtype: str, device: torch.device, folder: Path) -> Trainer:
    config = TrainConfig(
        model_args={"latent_dim": LATENT, "network_options": {"hidden": [HIDDEN]}},
        batch_size=batch,
        lr=LEARNING_RATE,
        precision={"float32": "fp32", "bfloat16": "bf16"}[dtype],
        emulate_bf16=True,
        device=str(device),
        out=str(folder / "run"),
    )
    trainer = Trainer(config, train_data=data, val_data=sprites(VALIDATION))
    trainer.model.train()
    return trainer


class Stream:
    """Steps on one epoch after another, as `Trainer.fit` takes them, metrics read at its interval."""

    def __init__(self, data: Any, batch: int, dtype: str, device: torch.device) -> None:
        self.trainer = trainer_of(data, batch, dtype, device, scratch(self))
        self.shares = self._shares()

    def _shares(self) -> Iterator[Any]:
        while True:
            yield from self.trainer.world.shares(self.trainer.batches)

    def steps(self, count: int) -> float:
        """The mean loss of ``count`` more steps."""
        trainer, total = self.trainer, 0.0
        meter = trainer.step.meter
        for share in (next(self.shares) for _ in range(count)):
            trainer.step(share, trainer.progress.step)
            trainer.progress.step += 1
            if trainer.progress.step % trainer.config.log_every == 0:
                means, samples = meter.read()
                total += means["loss"] * samples
        if meter.samples:
            means, samples = meter.read()
            total += means["loss"] * samples
        return total / (count * trainer.config.batch_size)


def setup_shards(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    """``shape``: batch, images."""
    batch, count = shape

    def contender(name: str, data: Any) -> Contender:
        return Contender(
            name, lambda stream: stream.steps(STEPS),
            own=lambda _: Stream(data, batch, dtype, device),
            outputs=lambda loss: Outputs((torch.tensor(loss, dtype=torch.float64),), ()),
            peak_bytes=lambda _: resident(data, batch, dtype, device),
        )  # fmt: skip

    def contenders() -> list[Contender | Absence]:
        images, labels = sprites(count).gather(torch.arange(count))
        return [
            contender(OURS, shards(count)),
            contender(IN_MEMORY, ArrayData(images, labels, "sprites")),
        ]

    @cache
    def truth() -> float:
        """The tutorial's loop in float64, over as many random images."""
        torch.manual_seed(0)
        images, _ = sprites(count).gather(torch.randint(count, (STEPS * batch,)))
        names, total = tutorial(), 0.0
        update = plain_update(names, torch.device("cpu"), torch.float64, SIDE * SIDE)
        for x in images.split(batch):
            total += update(x.flatten(1).double() / 255).item()
        return total / len(images)

    def check(_: Sequence[torch.Tensor], outputs: Outputs) -> None:
        close(f"the mean loss of {STEPS} steps", outputs.values[0].item(), truth(), TOLERANCE)

    return Case(
        "shards", pass_, f"{batch}x{count}", dtype, STEPS * batch * SIDE * SIDE, 0, device,
        lambda _: [], contenders, check, samples=STEPS * batch, sets=1,
    )  # fmt: skip


# --- memory --------------------------------------------------------------------------------------


def resident(
    data: ShardData | ArrayData, batch: int, dtype: str, device: torch.device
) -> int | None:
    """Peak resident bytes of a process that trains on the data, beyond one that trains on one batch.

    None if it is unknown: without /proc, or for data that would have to be sent to the process.
    """
    if not isinstance(data, ShardData) or not Path("/proc/self/status").exists():
        return None
    steps = min(len(data) // batch, 4 * STEPS)
    few = resident_memory(None, batch, dtype, str(device), STEPS)
    return resident_memory(data.folder, batch, dtype, str(device), steps) - few


def resident_memory(
    folder: Path | None, batch: int, dtype: str, device: str, steps: int, **options: Any
) -> int:
    """The peak of a separate process that takes ``steps`` steps, on a batch in memory or on
    shards."""
    job = {"folder": folder and str(folder), "batch": batch, "dtype": dtype, "device": device,
           "steps": steps, "options": options}  # fmt: skip
    command = [sys.executable, "-c", "from benchmarks.bench_shards import _child; _child()"]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def _child() -> None:
    job = json.load(sys.stdin)
    batch = job["batch"]
    if job["folder"] is None:
        data: Any = ArrayData(*sprites(batch).gather(torch.arange(batch)), "sprites")
    else:
        data = open_shards(job["folder"], **job["options"])
    stream = Stream(data, batch, job["dtype"], torch.device(job["device"]))
    stream.steps(job["steps"])
    print(peak_resident())


def peak_resident() -> int:
    """The largest resident size of this process so far, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


SETUPS = {"shards": setup_shards}

NAMES = (OURS, IN_MEMORY)


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(1,), rounds=5, warmup_rounds=1)
