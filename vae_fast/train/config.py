"""What a run is: dataclasses that a YAML file and command-line flags both fill.

Checked as a whole before anything is loaded or written, so that a misspelt name costs nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PRECISIONS = ("fp32", "bf16")


@dataclass
class ObjectiveConfig:
    """The loss, recon + beta * KL, in nats per sample (summed over features, mean over samples).

    Args:
        beta: weight of the KL term; 1 is the ELBO, and the default of most models.
    """

    beta: float | None = None


@dataclass
class CheckpointConfig:
    """When checkpoints are written; one is at the end of every run.

    Args:
        every_epochs: epochs between two, 0 for none.
        every_steps: steps between two, 0 for none.
        keep: how many to keep, beside the best.
    """

    every_epochs: int = 1
    every_steps: int = 0
    keep: int = 2


@dataclass
class TrainConfig:
    """A training run.

    Args:
        model: a model's name, such as vae, or an import path, package.module:Class.
        model_args: arguments of the model, such as latent_dim.
        data: a data set's name, such as fashion10k, or a path to an .npy file.
        epochs: passes over the training data.
        batch_size: samples per step.
        lr: learning rate of Adam.
        precision: fp32, or bf16 (autocast; the weights stay float32).
        device: auto (CUDA where there is one), cpu, cuda or cuda:1.
        seed: seeds the weights, the order of the data and the noise.
        out: folder of the run; runs/MODEL-DATA, numbered if taken, when not given.
        log_every: steps between two rows of metrics.jsonl.
        objective: the loss.
        checkpoint: when checkpoints are written.
    """

    model: str = "vae"
    model_args: dict[str, Any] = field(default_factory=dict)
    data: str = "fashion10k"
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    precision: str = "fp32"
    device: str = "auto"
    seed: int = 0
    out: str | None = None
    log_every: int = 50
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        """Raise ValueError for the first value that cannot work, saying what would."""
        for name in ("epochs", "batch_size", "log_every"):
            at_least(name, getattr(self, name), 1)
        at_least("seed", self.seed, 0)
        at_least("checkpoint.every_epochs", self.checkpoint.every_epochs, 0)
        at_least("checkpoint.every_steps", self.checkpoint.every_steps, 0)
        at_least("checkpoint.keep", self.checkpoint.keep, 1)
        positive("lr", self.lr)
        if self.objective.beta is not None:
            at_least("objective.beta", self.objective.beta, 0)
        known("precision", self.precision, PRECISIONS)
        resolve_device(self.device)


def known(what: str, value: str, names: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``names``, listing them and the nearest."""
    names = list(names)
    if value in names:
        return
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {value!r} is unknown: it is one of {', '.join(names)}{hint}")


def at_least(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be above 0, got {value}")


def resolve_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N as a torch.device that exists here, or ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "finds no GPU" if built else "is built without CUDA"
        raise ValueError(
            f"device {name!r} was asked for, and torch {torch.__version__} {why}: "
            "use --device cpu, or --device auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} was asked for, and there are {torch.cuda.device_count()} GPUs"
        )
    return device


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain dicts, for YAML and JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any], cls: type = TrainConfig, where: str = "") -> Any:
    """The inverse of ``to_dict``; a key that does not exist raises ValueError listing the known."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        known("config key", where + key, [where + name for name in fields])
        nested = fields[key].default_factory
        if dataclasses.is_dataclass(nested) and isinstance(value, Mapping):
            value = from_dict(value, nested, f"{where}{key}.")
        arguments[key] = value
    return cls(**arguments)
