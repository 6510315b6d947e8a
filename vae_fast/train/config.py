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

from vae_fast.data.augment import check_entries
from vae_fast.data.binarize import BINARIZE

PRECISIONS = ("fp32", "bf16", "fp16")
BETA_SCHEDULES = ("constant", "linear", "cyclical")
UNITS = ("epochs", "steps")
OPTIMIZERS = ("adam", "adamw")
DECAYS = ("constant", "cosine")
TENSORBOARD = ("auto", "on", "off")
DISTRIBUTED = ("ddp", "fsdp")


@dataclass
class ObjectiveConfig:
    """The loss, recon + beta * KL, in nats per sample (summed over features, mean over samples).

    Args:
        beta: weight of the KL term, or its final value; 1 is the ELBO, and most models' default.
        schedule: constant, linear (beta rises from 0 within one period) or cyclical (every period).
        period: length of the linear rise or of a cycle, in units.
        unit: epochs or steps.
        ramp: the part of a cycle in which beta rises.
        free_bits: nats of KL per latent dimension (hvae: per level), batch-averaged, below which it
            has no gradient.
    """

    beta: float | None = None
    schedule: str = "constant"
    period: float = 10.0
    unit: str = "epochs"
    ramp: float = 0.5
    free_bits: float = 0.0

    def check(self) -> None:
        if self.beta is not None:
            at_least("objective.beta", self.beta, 0)
        known("objective.schedule", self.schedule, BETA_SCHEDULES)
        positive("objective.period", self.period)
        known("objective.unit", self.unit, UNITS)
        positive("objective.ramp", self.ramp)
        if self.ramp > 1:
            raise ValueError(f"objective.ramp is a part of a cycle, at most 1, got {self.ramp}")
        at_least("objective.free_bits", self.free_bits, 0)


@dataclass
class OptimizerConfig:
    """How gradients become updates.

    A step whose loss or gradient is not finite never reaches the optimizer.

    Args:
        name: adam, adamw, or an import path, package.module:Class.
        args: further arguments of the optimizer, such as weight_decay.
        warmup_steps: steps in which the learning rate rises to lr.
        decay: constant, or cosine down to lr * final_lr at the end of the run.
        final_lr: where the cosine ends, as a part of lr.
        clip_norm: gradients of a larger norm are scaled down to it; 0 leaves them.
        skip_above: a step is skipped if its gradient's norm is so many times the running mean of
            norms; 0 skips none.
        patience: after so many steps skipped in a row for their norm, the next is taken.
        max_not_finite: after so many steps in a row that are not finite, the run stops.
    """

    name: str = "adam"
    args: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    decay: str = "constant"
    final_lr: float = 0.0
    clip_norm: float = 0.0
    skip_above: float = 0.0
    patience: int = 20
    max_not_finite: int = 20

    def check(self) -> None:
        if ":" not in self.name:
            known("optimizer.name", self.name, OPTIMIZERS)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        known("optimizer.decay", self.decay, DECAYS)
        at_least("optimizer.final_lr", self.final_lr, 0)
        at_least("optimizer.clip_norm", self.clip_norm, 0)
        at_least("optimizer.skip_above", self.skip_above, 0)
        if 0 < self.skip_above <= 1:
            raise ValueError(
                f"optimizer.skip_above is a multiple of the mean norm: above 1 (10, say), or 0 for "
                f"no skipping; got {self.skip_above}"
            )
        at_least("optimizer.patience", self.patience, 1)
        at_least("optimizer.max_not_finite", self.max_not_finite, 1)


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

    def check(self) -> None:
        at_least("checkpoint.every_epochs", self.every_epochs, 0)
        at_least("checkpoint.every_steps", self.every_steps, 0)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass
class LabelsConfig:
    """Which labels of the training data are shown, for models that learn from a few.

    Args:
        keep: how many samples keep their label, of every class as many, chosen by the run's seed;
            0 keeps all. The others' is -1. Validation keeps its labels.
        repeat: how often an epoch goes through the samples that keep theirs.
    """

    keep: int = 0
    repeat: int = 1

    def check(self) -> None:
        at_least("labels.keep", self.keep, 0)
        at_least("labels.repeat", self.repeat, 1)
        if self.repeat > 1 and self.keep == 0:
            raise ValueError(
                f"labels.repeat is {self.repeat}, and goes with labels.keep: how many labels"
            )


@dataclass
class TrainConfig:
    """A training run.

    Args:
        model: a model's name, such as vae, or an import path, package.module:Class.
        model_args: arguments of the model, such as latent_dim.
        data: a data set's name, such as fashion10k, or a path to an .npy file.
        binarize: none; dynamic, pixels drawn from Bernoulli(x / 255) anew every epoch; or static,
            drawn once. Either way the validation data are drawn once, by the seed.
        augment: transforms of training batches, each {name: Class of torchvision.transforms.v2 or
            package.module:Class, args: {...}}.
        epochs: passes over the training data.
        batch_size: samples per step.
        lr: learning rate, at its highest.
        precision: fp32, or bf16 or fp16 (autocast; the weights stay float32); fp16, with its loss
            scaled, on GPUs only.
        capture: take a small model's steps as a recording of them, made after the first few: on a
            GPU a CUDA graph. False for a model whose Python does something else from step to step.
        compile: run the model's networks under torch.compile; on the CPU its steps are not recorded.
        device: auto (CUDA where there is one), cpu, cuda or cuda:1.
        distributed: of several processes, each has the whole model (ddp) or shares of weights,
            gradients and optimizer state (fsdp).
        seed: seeds the weights, the order of the data and the noise.
        out: folder of the run; runs/MODEL-DATA, numbered if taken, when not given.
        log_every: steps between two rows of metrics.jsonl.
        ema: decay of a moving average of the weights, such as 0.999, validated and shown instead
            of the weights; 0 for none.
        pictures_every: epochs between two sets of pictures, kept under pictures/; 0 for the end's
            alone.
        tensorboard: auto (where it is installed), on or off.
        labels: which labels are shown.
        objective: the loss.
        optimizer: how gradients become updates.
        checkpoint: when checkpoints are written.
    """

    model: str = "vae"
    model_args: dict[str, Any] = field(default_factory=dict)
    data: str = "fashion10k"
    binarize: str = "none"
    augment: list[dict[str, Any]] = field(default_factory=list)
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    precision: str = "fp32"
    capture: bool = True
    compile: bool = False
    device: str = "auto"
    distributed: str = "ddp"
    seed: int = 0
    out: str | None = None
    log_every: int = 50
    ema: float = 0.0
    pictures_every: int = 0
    tensorboard: str = "auto"
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        """Raise ValueError for the first value that cannot work, saying what would."""
        for name in ("epochs", "batch_size", "log_every"):
            at_least(name, getattr(self, name), 1)
        at_least("seed", self.seed, 0)
        at_least("pictures_every", self.pictures_every, 0)
        positive("lr", self.lr)
        at_least("ema", self.ema, 0)
        if self.ema >= 1:
            raise ValueError(f"ema is a decay below 1, such as 0.999, got {self.ema}")
        known("tensorboard", self.tensorboard, TENSORBOARD)
        known("precision", self.precision, PRECISIONS)
        known("binarize", self.binarize, BINARIZE)
        known("distributed", self.distributed, DISTRIBUTED)
        check_entries(self.augment)
        device = resolve_device(self.device)
        if self.precision == "fp16" and device.type == "cpu":
            raise ValueError(
                "precision fp16 needs a GPU: on the CPU its small numbers are zero and its "
                "products slow. Use bf16, or fp32"
            )
        for name in ("labels", "objective", "optimizer", "checkpoint"):
            part = getattr(self, name)
            kind = {f.name: f for f in dataclasses.fields(self)}[name].default_factory
            if not isinstance(part, kind):
                names = ", ".join(f.name for f in dataclasses.fields(kind))
                raise TypeError(f"{name} must be a {kind.__name__} ({names}), got {part!r}")
            part.check()


GIVEN = "python:"  # before the name of data that were given as objects


def data_of(config: TrainConfig) -> str:
    """What ``config.data`` names; ValueError for data that were given in Python."""
    if config.data.startswith(GIVEN):
        raise ValueError(
            f"this run was trained on data given in Python ({config.data.removeprefix(GIVEN)}), "
            "which it has no name for: use --data, or Trainer.resume(run, train_data=..., "
            "val_data=...)"
        )
    return config.data


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
        if dataclasses.is_dataclass(nested):
            if value is None:  # a heading with nothing under it
                continue
            if isinstance(value, Mapping):
                value = from_dict(value, nested, f"{where}{key}.")
        arguments[key] = value
    return cls(**arguments)
