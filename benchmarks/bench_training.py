"""The tutorial's VAE (784-400-20, Adam): one step, and one epoch, beside the loops people write.

Epochs: the tutorial's own loop (images converted one by one, a DataLoader, loss.item() at each
step), the same with the images in memory as one tensor, that with torch.compile, JAX's jitted scan
(in benchmarks/jax_vae.py), pythae where it is installed, the tutorial with VAE, loss_function and
DataLoader imported from here, and our engine. In rows "beside N", N single-threaded processes keep the machine busy.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import vae_fast.nn
from benchmarks.busy import Busy, beside
from benchmarks.case import OURS, Absence, Absent, Case, Contender, Outputs
from benchmarks.check import close
from benchmarks.peers import CUDA_GRAPHS
from benchmarks.scratch import scratch
from vae_fast.data import Batches, DataUnavailableError, load
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.distributed import Share

DROP_IN = "ours (drop-in)"
GRAPHS = next(iter(CUDA_GRAPHS))
LEARNING_RATE = 1e-3
PIXELS, HIDDEN, LATENT = 784, 400, 20

# Initial weights, order and noise differ between implementations, and so does the loss, by less
# than this. A wrong loss, or a step that does not train, differs by more.
TOLERANCE = 0.03


@cache
def tutorial() -> ModuleType:
    """The tests' copy of the tutorial's script, whose classes and loss are used here."""
    path = Path(__file__).resolve().parent.parent / "tests" / "tutorial" / "by_hand.py"
    spec = importlib.util.spec_from_file_location("tutorial_by_hand", path)
    if spec is None or spec.loader is None or not path.exists():
        raise Absent(f"the tutorial's script is not at {path}: run from a clone")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where torch.compile looks for the globals of its functions
    spec.loader.exec_module(module)
    return module


@cache
def images(count: int) -> Tensor:
    """(count, 28, 28) uint8: fashion10k's training images, or Fashion-MNIST's for larger counts.

    If these are too few, or Fashion-MNIST is not on this machine, fashion10k's images repeat: a step
    takes the same time.
    """
    found = None
    if 10_000 < count <= 70_000:
        with suppress(DataUnavailableError):
            found = load("fashion-mnist", split="train+val").images
    if found is None:
        found = load("fashion10k", split="train").images
    found = torch.as_tensor(np.asarray(found)).reshape(-1, 28, 28)
    return found.repeat(-(-count // len(found)), 1, 1)[:count]


# --- one update, in the ways people write it ----------------------------------------------------

Update = Callable[[Tensor], Tensor]


def plain_update(
    names: ModuleType,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    pixels: int = PIXELS,
    hidden: int = HIDDEN,
) -> Update:
    """The tutorial's: forward, loss, backward, Adam. ``names`` has VAE and loss_function."""
    torch.manual_seed(0)
    model = names.VAE(pixels, hidden, LATENT).to(device, dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def update(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        x_hat, mu, logvar = model(x)
        loss = names.loss_function(x, x_hat, mu, logvar)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


def compiled_update(device: torch.device, mode: str | None = None) -> Update:
    """The same with forward and loss under torch.compile, and Adam fused: a careful user's."""
    torch.manual_seed(0)
    model, loss_function = tutorial().VAE(PIXELS, HIDDEN, LATENT), tutorial().loss_function
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    @torch.compile(fullgraph=True, mode=mode)
    def objective(x: Tensor) -> Tensor:
        return loss_function(x, *model(x))

    def update(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = objective(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return update


class Engine:
    """Our engine as ``Trainer.fit`` runs it, without validation, checkpoints and pictures between
    epochs."""

    def __init__(
        self, data: Tensor, batch: int, dtype: str, device: torch.device, hidden: int = HIDDEN
    ) -> None:
        config = TrainConfig(
            model="vae",
            model_args={"latent_dim": LATENT, "network_options": {"hidden": [hidden]}},
            batch_size=batch,
            lr=LEARNING_RATE,
            precision={"float32": "fp32", "bfloat16": "bf16"}[dtype],
            emulate_bf16=True,
            device=str(device),
            out=str(scratch(self) / "run"),
        )
        self.trainer = Trainer(config, train_data=data, val_data=data[:batch])
        self.trainer.model.train()

    def shares(self, batches: Batches) -> Iterable[Share]:
        """Batches as the engine's step takes them."""
        return self.trainer.world.shares(batches)

    def step(self, share: Any) -> None:
        self.trainer.step(share, self.trainer.progress.step)
        self.trainer.progress.step += 1

    def loss(self) -> float:
        """The mean loss since the last call, in nats per sample."""
        return self.trainer.step.meter.read()[0]["loss"]

    def epoch(self, _: None) -> float:
        """An epoch, its loss read once per log interval, as the trainer does; the mean loss."""
        total = samples = 0.0
        self.trainer.batches.by_rows = self.trainer.step.takes_rows
        for share in self.shares(self.trainer.batches):
            self.step(share)
            if self.trainer.progress.step % self.trainer.config.log_every == 0:
                count = self.trainer.step.meter.samples
                total, samples = total + count * self.loss(), samples + count
        if count := self.trainer.step.meter.samples:
            total, samples = total + count * self.loss(), samples + count
        return total / samples


def as_floats(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device).reshape(len(x), -1).float() / 255


# --- the step ------------------------------------------------------------------------------------

MORE_STEPS = 30


def setup_step(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    (batch,) = shape
    torch.manual_seed(0)

    def inputs(seed: int) -> list[Tensor]:
        return [images(10_000)[seed * batch : (seed + 1) * batch]]

    def contender(name: str, update: Update) -> Contender:
        def outputs(x: Tensor, loss: Tensor) -> Outputs:
            for _ in range(MORE_STEPS):
                later = update(x)
            return Outputs((loss / len(x), later / len(x)), ())

        return Contender(
            name, lambda x: (x, update(x)), own=lambda s: as_floats(s[0], device),
            outputs=lambda out: outputs(*out),
        )  # fmt: skip

    def engine() -> Contender:
        ours = Engine(images(10_000), batch, dtype, device)

        def own(inputs: Sequence[Tensor]) -> Any:
            return Share(inputs[0].to(device).reshape(-1, 1, 28, 28), None)

        def outputs(share: Any) -> Outputs:
            first = ours.loss()
            for _ in range(MORE_STEPS - 1):
                ours.step(share)
            ours.loss()
            ours.step(share)
            return Outputs((torch.tensor(first), torch.tensor(ours.loss())), ())

        def run(share: Any) -> Any:
            ours.step(share)
            return share

        return Contender(OURS, run, own=own, outputs=outputs)

    def contenders() -> list[Contender | Absence]:
        return [
            engine(),
            contender(DROP_IN, plain_update(vae_fast.nn, device)),
            contender("eager", plain_update(tutorial(), device)),
            contender("compile", compiled_update(device)),
        ]

    @cache
    def truth() -> tuple[float, float]:
        update = plain_update(tutorial(), torch.device("cpu"), torch.float64)
        x = inputs(0)[0].reshape(batch, -1).double() / 255
        losses = [update(x).item() / batch for _ in range(MORE_STEPS + 1)]
        return losses[0], losses[-1]

    def check(_: Sequence[Tensor], outputs: Outputs) -> None:
        for name, found, right in zip(
            ("the first loss", f"the loss {MORE_STEPS} steps later"),
            outputs.values, truth(), strict=True,
        ):  # fmt: skip
            close(name, found.item(), right, TOLERANCE)

    return Case(
        "step", pass_, str(batch), dtype, batch * PIXELS, 0, device, inputs, contenders, check,
        samples=batch, sets=8,
    )  # fmt: skip


# --- the epoch -----------------------------------------------------------------------------------


class OneByOne(Dataset):
    """Images one by one, through PIL, to floats in [0, 1], as torchvision's MNIST with ToTensor."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        picture = Image.fromarray(self.data[index].numpy())
        grey = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(28, 28, 1)
        return grey.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def one_by_one_set(data: Tensor) -> Dataset:
    """torchvision's MNIST class around ``data``, as the tutorial has it, or a stand-in without labels
    where torchvision does not import."""
    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError, OSError):
        return OneByOne(data)
    made = datasets.MNIST.__new__(datasets.MNIST)  # its constructor looks for files
    made.data, made.targets = data, torch.zeros(len(data), dtype=torch.int64)
    made.transform, made.target_transform = transforms.ToTensor(), None
    return made


def in_memory(data: Tensor, batch: int) -> Iterable[Tensor]:
    order = torch.randperm(len(data), device=data.device)
    for begin in range(0, len(data), batch):
        yield data[order[begin : begin + batch]]


def one_by_one(loader: DataLoader, device: torch.device) -> Iterable[Tensor]:
    for x in loader:
        images = x[0] if isinstance(x, list) else x
        yield images.view(-1, PIXELS).to(device)


def epoch(name: str, run: Callable[[None], float]) -> Contender:
    return Contender(
        name, run, own=lambda _: None,
        outputs=lambda loss: Outputs((torch.tensor(loss, dtype=torch.float64),), ()),
    )  # fmt: skip


def first_epochs_loss(data: Tensor, batch: int, hidden: int = HIDDEN) -> Callable[..., None]:
    """The check that a first epoch's loss is that of the tutorial's loop in float64."""

    @cache
    def truth() -> float:
        update = plain_update(tutorial(), torch.device("cpu"), torch.float64, hidden=hidden)
        total = 0.0
        for x in in_memory(data.flatten(1), batch):
            total += update(x.double() / 255).item()
        return total / len(data)

    def check(_: Sequence[Tensor], outputs: Outputs) -> None:
        close("the first epoch's loss", outputs.values[0].item(), truth(), TOLERANCE)

    return check


def setup_epoch(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    batch, count, *beside_how_many = shape
    data, busy = images(count), Busy(sum(beside_how_many))

    def loop(name: str, update: Update, batches: Callable[[], Iterable[Tensor]]) -> Contender:
        """The tutorial's loop, which asks for the loss at each step."""

        def run(_: None) -> float:
            total = 0.0
            for x in batches():
                total += update(x).item()
            return total / count

        return epoch(name, run)

    def loader(cls: type[DataLoader]) -> Callable[[], Iterable[Tensor]]:
        made = cls(one_by_one_set(data), batch_size=batch, shuffle=True)
        return lambda: one_by_one(made, device)

    def contenders() -> list[Contender | Absence]:
        from benchmarks import jax_vae, pythae_vae

        floats = as_floats(data, device)
        jax_epoch = jax_vae.contender(data.numpy(), batch, dtype, device)
        found: list[Contender | Absence] = [epoch(OURS, Engine(data, batch, dtype, device).epoch)]
        if importlib.util.find_spec("PIL") is None:
            found.append(Absence("tutorial", "pillow is not installed"))
        else:
            found += [
                loop(DROP_IN, plain_update(vae_fast.nn, device), loader(vae_fast.DataLoader)),
                loop("tutorial", plain_update(tutorial(), device), loader(DataLoader)),
            ]
        found += [
            loop("in memory", plain_update(tutorial(), device), lambda: in_memory(floats, batch)),
            loop("compile", compiled_update(device), lambda: in_memory(floats, batch)),
            jax_epoch if isinstance(jax_epoch, Absence) else epoch("jax", jax_epoch),
        ]
        if dtype != "float32" and not isinstance(jax_epoch, Absence):
            found.append(
                epoch("jax-float32", jax_vae.contender(data.numpy(), batch, "float32", device))
            )
        pythae_epoch = pythae_vae.contender(tutorial(), floats, batch)
        found.append(
            pythae_epoch if isinstance(pythae_epoch, Absence) else epoch("pythae", pythae_epoch)
        )
        return found

    def contenders_beside() -> list[Contender | Absence]:
        from benchmarks import jax_vae

        jax_epoch = jax_vae.contender(data.numpy(), batch, dtype, device)
        found: list[Contender | Absence] = [
            epoch(OURS, Engine(data, batch, dtype, device).epoch),
            jax_epoch if isinstance(jax_epoch, Absence) else epoch("jax", jax_epoch),
        ]
        return [c if isinstance(c, Absence) else beside(busy, c) for c in found]

    # In a bfloat16 row only our contenders and JAX compute in bfloat16. F.binary_cross_entropy
    # refuses autocast, so the torch peers stay in float32.
    note = "" if dtype == "float32" else "the torch peers are float32"
    made = contenders
    if beside_how_many:
        note, made = "the last number: busy processes beside it", contenders_beside
    return Case(
        "epoch", pass_, "x".join(map(str, shape)), dtype, count * PIXELS, 0, device, lambda _: [],
        made, first_epochs_loss(data, batch), samples=count, sets=1, memory=False, note=note,
    )  # fmt: skip


def setup_sizes(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    """An epoch with batches and a hidden layer of other sizes, ours and JAX's."""
    batch, hidden, count = shape
    data = images(count)

    def contenders() -> list[Contender | Absence]:
        from benchmarks import jax_vae

        jax_epoch = jax_vae.contender(data.numpy(), batch, dtype, device, hidden)
        found = [epoch(OURS, Engine(data, batch, dtype, device, hidden).epoch)]
        return [*found, jax_epoch if isinstance(jax_epoch, Absence) else epoch("jax", jax_epoch)]

    return Case(
        "sizes", pass_, "x".join(map(str, shape)), dtype, count * PIXELS, 0, device,
        lambda _: [], contenders, first_epochs_loss(data, batch, hidden), samples=count, sets=1,
        memory=False, note="batch x hidden layer x images",
    )  # fmt: skip


def setup_short_epoch(
    shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
) -> Case:
    """A short epoch for a GPU lent for minutes: ours, and torch.compile's with images on it."""
    batch, count = shape
    data = images(count)

    def contenders() -> list[Contender | Absence]:
        floats = as_floats(data, device)

        def loop(mode: str | None) -> Callable[[None], float]:
            update = compiled_update(device, mode)

            def run(_: None) -> float:
                total = torch.zeros((), device=device)
                for x in in_memory(floats, batch):
                    torch.compiler.cudagraph_mark_step_begin()  # a graph's outputs are its own
                    total += update(x)
                return total.item() / count

            return run

        found = [epoch(OURS, Engine(data, batch, dtype, device).epoch)]
        found.append(epoch("compile", loop(None)))
        if device.type == "cuda":
            found.append(epoch(GRAPHS, loop("reduce-overhead")))
        return found

    return Case(
        "short_epoch", pass_, "x".join(map(str, shape)), dtype, count * PIXELS, 0, device,
        lambda _: [], contenders, first_epochs_loss(data, batch), samples=count, sets=1,
        memory=False, note="images on the device",
    )  # fmt: skip


SETUPS = {
    "step": setup_step,
    "epoch": setup_epoch,
    "short_epoch": setup_short_epoch,
    "sizes": setup_sizes,
}

NAMES = (OURS, DROP_IN, "tutorial", "in memory", "eager", "compile", "jax", "jax-float32", "pythae")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(1,), rounds=5, warmup_rounds=1)
