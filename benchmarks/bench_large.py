"""One training step of each autoencoder in examples/: time and peak memory, beside plain PyTorch.

A step is forward, backward and fused AdamW on a batch of uint8 images. Ours is the unchanged
configuration on the native kernels. The peers are the same network with the same weights on the
reference backend, contiguous and without checkpointing. Compiled ones are included on GPUs only: on
a CPU the convolutions are most of the step, and compiling takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vae_fast
from benchmarks.case import OURS, Absence, Absent, Case, Contender, Outputs
from benchmarks.check import close
from benchmarks.inputs import DTYPES, pixels
from vae_fast import models
from vae_fast.train.setup import compile_networks

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LEARNING_RATE = 1e-4
COMPILED = "ours (compiled)"

# Configuration: the images' shape, and the GPU memory that its rows are sized for, in bytes.
CONFIGURATIONS: dict[str, tuple[tuple[int, int, int], float]] = {
    "autoencoder_kl": ((1, 28, 28), 0),
    "autoencoder_kl_22m": ((1, 64, 64), 20e9),
    "autoencoder_kl_84m": ((3, 256, 256), 70e9),
}

# Relative tolerances of the loss and of its gradient's norm.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.01, 0.05)}


@cache
def model_args(name: str) -> dict[str, Any]:
    """What examples/NAME.yaml gives its model."""
    try:
        import yaml
    except ImportError:
        raise Absent("PyYAML is not installed, and the configurations are YAML") from None
    path = EXAMPLES / f"{name}.yaml"
    if not path.exists():
        raise Absent(f"the configuration is not at {path}: run from a clone")
    return yaml.safe_load(path.read_text())["model_args"]


def build(name: str, shape: Sequence[int], device: torch.device, **options: Any) -> nn.Module:
    """The configuration's model, the same weights each time, none of them in a branch of zeros."""
    torch.manual_seed(0)
    model = models.build("autoencoder-kl", shape, **{**model_args(name), **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.to(device)


class Training:
    """A model, its optimizer, and one step of both."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        backend: str,
        compiled: bool,
    ) -> None:
        self.model = model
        self.start = [p.detach().cpu().clone() for p in model.parameters()]
        self.forward = model
        if compiled and backend == "reference":
            self.forward = torch.compile(model)
        elif compiled:
            compile_networks(model)  # as the engine does
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.backend = backend
        self.autocast: Callable[[], Any] = nullcontext
        if dtype != torch.float32:
            self.autocast = partial(torch.autocast, device.type, dtype)

    def loss(self, x: Tensor, **options: Tensor) -> Tensor:
        with vae_fast.set_backend(self.backend), self.autocast():
            return self.forward(x, **options).loss

    def step(self, x: Tensor) -> Tensor:
        self.loss(x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return x

    def outputs(self, x: Tensor) -> Outputs:
        """The norm of the first step's change; loss and gradient norm at the initial weights."""
        parameters = list(self.model.parameters())
        with torch.no_grad():
            moved = [
                (p.cpu() - s).square().sum() for p, s in zip(parameters, self.start, strict=True)
            ]
            for p, start in zip(parameters, self.start, strict=True):
                p.copy_(start)
        loss = self.loss(x, noise_key=key(x.device))
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([g.float().square().sum() for g in gradients]).sum().sqrt()
        return Outputs((loss.detach(), norm, torch.stack(moved).sum().sqrt()), ())


def key(device: torch.device) -> Tensor:
    return torch.tensor([1, 2], device=device)


def setup(
    name: str, shape: Sequence[int], pass_: str, dtype: str, device: torch.device,
    modes: Sequence[str],
) -> Case:  # fmt: skip
    (batch,), (image, memory), kind = shape, CONFIGURATIONS[name], DTYPES[dtype]
    if memory and device.type != "cuda":
        raise Absent("this configuration is for a GPU")
    if memory and torch.cuda.get_device_properties(device).total_memory < memory:
        raise Absent(f"this row is sized for a GPU with {memory / 1e9:.0f} GB")
    model_args(name)

    def inputs(seed: int) -> list[Tensor]:
        return [pixels(seed, 0, (batch, *image), torch.uint8, device)]

    def contender(label: str, backend: str, compiled: bool, **options: Any) -> Contender:
        training = Training(build(name, image, device, **options), kind, device, backend, compiled)
        return Contender(label, training.step, own=lambda s: s[0], outputs=training.outputs)

    def contenders() -> list[Contender | Absence]:
        plain = {"channels_last": False, "checkpointing": "none"}
        found = [
            contender(OURS, "auto", False),
            contender("eager", "reference", False, **plain),
        ]
        if device.type == "cuda":
            found += [
                contender(COMPILED, "auto", True),
                contender("compile", "reference", True, **plain),
            ]
        return found

    @cache
    def truth() -> tuple[float, float, float]:
        # With checkpointing, because float64 takes the memory of four bfloat16s.
        model = build(name, image, device, checkpointing="blocks").double()
        with vae_fast.set_backend("reference"):
            loss = model.loss(inputs(0)[0], noise_key=key(device)).loss
            gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        # Adam's first step moves every weight by the learning rate.
        moved = LEARNING_RATE * math.sqrt(sum(p.numel() for p in model.parameters()))
        return loss.item(), norm, moved

    def check(_: Sequence[Tensor], outputs: Outputs) -> None:
        of_loss, of_norm = TOLERANCE[kind]
        names = ("the loss", "the norm of the gradient", "the first step's length")
        for what, found, right, tolerance in zip(
            names, outputs.values, truth(), (of_loss, of_norm, 0.02), strict=True
        ):
            close(what, found.item(), right, tolerance)

    return Case(
        name, pass_, str(batch), dtype, batch * math.prod(image), 0, device, inputs, contenders,
        check, samples=batch, sets=2,
    )  # fmt: skip


SETUPS = {name: partial(setup, name) for name in CONFIGURATIONS}

NAMES = (OURS, COMPILED, "eager", "compile")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(1,), rounds=5, warmup_rounds=1)
