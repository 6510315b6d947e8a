"""The configuration of a run: dataclasses filled from a YAML file and from command-line flags.

It is checked as a whole before anything is loaded or written, so a misspelt name costs no time.
torch is imported only to look for a device; the command line's help and error messages need no
torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import reprlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args, get_origin, get_type_hints

from vae_fast.data_options import DataOptions
from vae_fast.import_paths import Trust, check_entries, named_by, plain

BINARIZE = ("none", "static", "dynamic")
PRECISIONS = ("fp32", "bf16", "fp16")
BETA_SCHEDULES = ("constant", "linear", "cyclical")
MATMULS = ("auto", "mkl", "onednn")
RUNNERS = ("auto", "eager", "native", "recorded", "graph")
UNITS = ("epochs", "steps")
OPTIMIZERS = ("adam", "adamw")
DECAYS = ("constant", "cosine")
LOGGERS = ("none", "wandb", "mlflow")
TENSORBOARD = ("auto", "on", "off")
DISTRIBUTED = ("ddp", "fsdp")
STANDARDIZE = ("auto", "on", "off")


@dataclass
class ObjectiveConfig:
    """The loss, recon + beta * KL, in nats per sample (summed over features, mean over samples).

    Args:
        beta: weight of the KL term, or its final value; 1 is the ELBO, and most models' default.
        schedule: constant, linear (beta rises from 0 within one period) or cyclical (every period).
        period: length of the linear rise or of a cycle, in units.
        unit: epochs or steps.
        ramp: the part of a cycle in which beta rises.
        free_bits: nats of batch-averaged KL per latent dimension (hvae: per level). A dimension
            with less KL has no KL gradient.
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
        check_known("objective.schedule", self.schedule, BETA_SCHEDULES)
        check_positive("objective.period", self.period)
        check_known("objective.unit", self.unit, UNITS)
        check_positive("objective.ramp", self.ramp)
        if self.ramp > 1:
            raise ValueError(
                f"objective.ramp, a part of a cycle, must be at most 1, got {self.ramp}"
            )
        at_least("objective.free_bits", self.free_bits, 0)


@dataclass
class OptimizerConfig:
    """How gradients become updates.

    A step whose loss or gradient is not finite never reaches the optimizer.

    Args:
        name: adam, adamw, or an import path, package.module:Class.
        args: further arguments of the optimizer, such as weight_decay.
        groups: arguments for some parameters only, [{parameters: "encoder.*", lr: 0.1}, ...]: a pattern
            of names, as in a shell, and arguments; lr is a multiple of the run's. A parameter uses
            the first entry that fits it.
        phases: arguments of one phase's optimizer, {discriminator: {lr: 2, betas: [0.5, 0.9]}}, for
            models that train several losses in turn; lr is a multiple of what the phase has.
        warmup_steps: steps in which the learning rate rises to lr.
        decay: constant, or cosine down to lr * final_lr at the end of the run.
        final_lr: where the cosine ends, as a part of lr.
        scheduler: in place of warmup_steps and decay, a class of torch.optim.lr_scheduler, such as
            ReduceLROnPlateau, which uses the validation loss; or an import path.
        scheduler_args: its arguments. T_max and total_steps default to the run's length.
        scheduler_unit: the unit of the scheduler's steps, epochs or steps.
        clip_norm: gradients of a larger norm are scaled down to it; 0 leaves them.
        skip_above: a step is skipped if its gradient's norm exceeds this multiple of the running
            mean of norms; 0 skips none.
        patience: number of consecutive steps skipped for their norm after which the next is taken.
        max_not_finite: number of consecutive steps that are not finite after which the run stops.
    """

    name: str = "adam"
    args: dict[str, Any] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    phases: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    decay: str = "constant"
    final_lr: float = 0.0
    scheduler: str = ""
    scheduler_args: dict[str, Any] = field(default_factory=dict)
    scheduler_unit: str = "epochs"
    clip_norm: float = 0.0
    skip_above: float = 0.0
    patience: int = 20
    max_not_finite: int = 20

    def check(self) -> None:
        if ":" not in self.name:
            check_known("optimizer.name", self.name, OPTIMIZERS)
        for entry in self.groups:
            pattern = entry.get("parameters")
            if not isinstance(pattern, str) or len(entry) < 2:
                raise ValueError(
                    "optimizer.groups has entries {parameters: PATTERN, ARGUMENT: VALUE, ...}, got "
                    f"{shown(entry)}"
                )
            _check_arguments(f"optimizer.groups, {pattern}", entry)
        for name, arguments in self.phases.items():
            if not isinstance(arguments, dict):
                raise TypeError(
                    f"optimizer.phases has for each phase {{ARGUMENT: VALUE, ...}}, got {name}: "
                    f"{shown(arguments)}"
                )
            _check_arguments(f"optimizer.phases.{name}", arguments)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        check_known("optimizer.decay", self.decay, DECAYS)
        at_least("optimizer.final_lr", self.final_lr, 0)
        check_known("optimizer.scheduler_unit", self.scheduler_unit, UNITS)
        if self.scheduler and (self.decay != "constant" or self.warmup_steps > 0):
            raise ValueError(
                f"optimizer.scheduler {self.scheduler} replaces optimizer.decay and "
                "optimizer.warmup_steps: give either it or them"
            )
        if self.scheduler_args and not self.scheduler:
            raise ValueError("optimizer.scheduler_args need an optimizer.scheduler: name one")
        at_least("optimizer.clip_norm", self.clip_norm, 0)
        at_least("optimizer.skip_above", self.skip_above, 0)
        if 0 < self.skip_above <= 1:
            raise ValueError(
                f"optimizer.skip_above is a multiple of the mean norm: above 1 (10, say), or 0 for "
                f"no skipping; got {self.skip_above}"
            )
        at_least("optimizer.patience", self.patience, 1)
        at_least("optimizer.max_not_finite", self.max_not_finite, 1)


def _check_arguments(where: str, arguments: Mapping[str, Any]) -> None:
    if "lr" in arguments:
        check_positive(f"{where}: lr", typed(f"{where}: lr", arguments["lr"], float))
    if "params" in arguments:
        raise ValueError(f"{where}: params are the parameters themselves, and no argument")


@dataclass
class CheckpointConfig:
    """When checkpoints are written. The end of a run always writes one.

    Args:
        every_epochs: epochs between two checkpoints, 0 for none.
        every_steps: steps between two checkpoints, 0 for none.
        keep: number of checkpoints to keep, in addition to the best.
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
    """Which labels of the training data the model sees, for models that learn from a few.

    Args:
        keep: number of samples that keep their label, the same number of every class, chosen by the
            run's seed; 0 keeps all. The other labels become -1. Validation keeps its labels.
        repeat: how often an epoch repeats the samples that keep their labels.
    """

    keep: int = 0
    repeat: int = 1

    def check(self) -> None:
        at_least("labels.keep", self.keep, 0)
        at_least("labels.repeat", self.repeat, 1)
        if self.repeat > 1 and self.keep == 0:
            raise ValueError(
                f"labels.repeat is {self.repeat}, and needs labels.keep, the number of labels"
            )


@dataclass
class TrainConfig:
    """A training run.

    Args:
        model: a model's name, such as vae, or an import path, package.module:Class.
        model_args: arguments of the model, such as latent_dim.
        data: a data set's name, such as fashion10k, or a path to a file or folder.
        data_options: how image files are read, and which samples are held out; on the command line
            --data.size, --data.mode, ...
        binarize: none; dynamic, pixels drawn from Bernoulli(x / 255) in every epoch; or static,
            drawn once. Validation data are always drawn once, by the seed.
        standardize: on, the model shifts and scales columns of real values to mean 0 and standard
            deviation 1, and undoes this in its outputs; off; or auto, on for tables (.csv,
            .parquet) of real values. The run's config records the choice.
        augment: transforms of training batches, each {name: Class of torchvision.transforms.v2 or
            package.module:Class, args: {...}}.
        workers: processes that read the items of a torch Dataset or of a stream; data in memory, and
            shards, need none.
        epochs: passes over the training data.
        max_steps: the largest number of steps, also before the last epoch; 0 for no limit.
        early_stop: the number of consecutive validations without a new lowest loss after which the
            run ends; 0 for never. Under an adversarial objective, where the latest validation is the
            best (vae-gan, and latent-diffusion once its discriminator has begun), each counts as the
            lowest.
        batch_size: samples per step.
        accumulate: the number of parts in which a batch goes through the model. Their gradients are
            added. This is for batches that do not fit into memory. Steps are then eager.
        lr: learning rate, at its peak.
        precision: fp32, or bf16 or fp16 (autocast; the weights stay float32); fp16, with its loss
            scaled, on GPUs only.
        emulate_bf16: allow bf16 on a device without instructions for it, where it is many times
            slower than fp32.
        matmul: the library of large float32 products on the CPU, mkl or onednn; auto takes the one
            measured to be faster on this machine. The run's config records the choice.
        runner: how steps are taken: eager, in Python; native, in one call on the CPU; recorded,
            from a recording of the step's ops on the CPU; graph, by a CUDA graph on a GPU; auto,
            the fastest that the model allows. The run's config records the choice. auto does not
            record models with your own classes, whose Python may depend on what a recording cannot
            see.
        capture: whether auto may record a small model's steps after the first few, on a GPU as a
            CUDA graph. Not given: yes, for models made of vae_fast's and torch's classes. True: yes,
            for models with your own classes too, whose Python must do the same in every step. False:
            no, all steps are eager.
        compile: run the model's networks under torch.compile; on the CPU its steps are not recorded.
        device: auto (CUDA where there is one), cpu, cuda or cuda:1.
        distributed: with several processes, each holds the whole model (ddp), or a share of
            weights, gradients and optimizer state (fsdp).
        seed: seeds the weights, the order of the data and the noise.
        init_from: folder of another run. This run starts from its weights whose names and shapes
            fit.
        out: folder of the run; by default runs/MODEL-DATA, with a number if that exists.
        log_every: steps between two rows of metrics.jsonl.
        ema: decay of a moving average of the weights, such as 0.999, which validation and pictures
            use instead of the weights; 0 for none.
        pictures_every: epochs between two sets of pictures under pictures/; 0 draws them at the end
            only.
        tensorboard: auto (where it is installed), on or off.
        log_to: where rows and pictures go in addition to the run's folder: none, wandb or mlflow.
        labels: which labels the model sees.
        objective: the loss.
        optimizer: how gradients become updates.
        checkpoint: when checkpoints are written.
    """

    model: str = "vae"
    model_args: dict[str, Any] = field(default_factory=dict)
    data: str = "fashion10k"
    data_options: DataOptions = field(default_factory=DataOptions)
    binarize: str = "none"
    standardize: str = "auto"
    augment: list[dict[str, Any]] = field(default_factory=list)
    workers: int = 0
    epochs: int = 10
    max_steps: int = 0
    early_stop: int = 0
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    precision: str = "fp32"
    emulate_bf16: bool = False
    matmul: str = "auto"
    runner: str = "auto"
    capture: bool | None = None
    compile: bool = False
    device: str = "auto"
    distributed: str = "ddp"
    seed: int = 0
    init_from: str | None = None
    out: str | None = None
    log_every: int = 50
    ema: float = 0.0
    pictures_every: int = 0
    tensorboard: str = "auto"
    log_to: str = "none"
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        """Raise ValueError or TypeError for the first value that cannot work; the message says what
        would."""
        self.check_values()
        check_precision(self, resolve_device(self.device))

    def check_values(self) -> None:
        """``check`` without a look at the device, for which torch would be imported."""
        for name, hint in field_types(TrainConfig).items():
            typed(name, getattr(self, name), hint)
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            at_least(name, getattr(self, name), 1)
        for name in ("workers", "max_steps", "early_stop", "seed", "pictures_every"):
            at_least(name, getattr(self, name), 0)
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is in how many parts a batch is taken: at most batch_size, "
                f"{self.batch_size}, got {self.accumulate}"
            )
        check_positive("lr", self.lr)
        at_least("ema", self.ema, 0)
        if self.ema >= 1:
            raise ValueError(f"ema is a decay below 1, such as 0.999, got {self.ema}")
        check_known("tensorboard", self.tensorboard, TENSORBOARD)
        check_known("log_to", self.log_to, LOGGERS)
        check_known("precision", self.precision, PRECISIONS)
        check_known("matmul", self.matmul, MATMULS)
        check_known("runner", self.runner, RUNNERS)
        check_known("standardize", self.standardize, STANDARDIZE)
        check_known("binarize", self.binarize, BINARIZE)
        check_known("distributed", self.distributed, DISTRIBUTED)
        check_entries(self.augment)
        for name in ("data_options", "labels", "objective", "optimizer", "checkpoint"):
            part = getattr(self, name)
            for key, hint in field_types(cast(Any, type(part))).items():
                typed(f"{name}.{key}", getattr(part, key), hint)
            part.check()


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run, if nothing stops it early."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


GIVEN = "python:"  # prefix of the name of data given as Python objects


def data_of(config: TrainConfig) -> str:
    """The source that ``config.data`` names; ValueError for data given as Python objects."""
    if config.data.startswith(GIVEN):
        raise ValueError(
            f"this run was trained on data given in Python ({config.data.removeprefix(GIVEN)}), "
            "which config.yaml cannot name: use --data, or Trainer.resume(run, train_data=..., "
            "val_data=...)"
        )
    return config.data


def check_known(what: str, value: str, names: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is in ``names``; the message lists them and the nearest."""
    names = list(names)
    if value not in names:
        raise ValueError(_unknown(what, value, names))


def _unknown(what: str, value: str, names: list[str]) -> str:
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what} {value!r} is unknown: it is one of {', '.join(names)}{hint}"


def at_least(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be above 0, got {value}")


def resolve_device(name: str) -> Any:
    """auto, cpu, cuda or cuda:N as a torch.device that exists here, or ValueError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use = "use auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {name!r} is unknown: {use}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device {name!r} was asked for, and vae_fast trains on CPUs and CUDA GPUs alone: {use}"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "finds no GPU" if built else "is built without CUDA"
        raise ValueError(
            f"device {name!r} was asked for, and torch {torch.__version__} {why}: "
            "use --device cpu, or --device auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} was asked for, and the GPUs here are cuda:0 to "
            f"cuda:{torch.cuda.device_count() - 1}: use one of them"
        )
    return torch.device("cpu") if device.type == "cpu" else device


def check_precision(config: TrainConfig, device: Any) -> None:
    """Raise ValueError if ``device`` has no instructions for the precision."""
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "precision fp16 needs a GPU: on the CPU its small numbers are zero and its "
            "products slow. Use bf16, or fp32"
        )
    if config.precision == "bf16" and not config.emulate_bf16 and not has_bf16(device):
        other = "fp32" if device.type == "cpu" else "fp16 or fp32"
        raise ValueError(
            f"precision bf16 was asked for, and this {device.type.upper()} has no instructions for "
            f"it: its products would take many times as long as in fp32. Use --precision {other}, "
            "or insist with --emulate-bf16 true"
        )


def has_bf16(device: Any) -> bool:
    """Whether ``device``, a torch.device, has instructions for bfloat16 products."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    found = {k: v for k, v in torch.cpu.get_capabilities().items() if k.endswith("bf16")}
    return any(found.values()) or not found  # a CPU unknown to torch is tried


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain dicts, for YAML and JSON."""
    return plain(dataclasses.asdict(config))


class UnknownKey(ValueError):
    """An unknown key. ``key`` is its full name, ``known`` are the existing keys."""

    def __init__(self, key: str, known: list[str]) -> None:
        super().__init__(_unknown("config key", key, known))
        self.key, self.known = key, known


def from_dict(values: Mapping[str, Any], *, trust: Trust = False) -> TrainConfig:
    """The inverse of ``to_dict``, for values that were read from a file.

    Args:
        trust: which classes import paths in ``values`` may name; their code runs. False: torch's,
            torchvision's and our own. True: any. A collection: those paths as well.

    Raises:
        ValueError: an unknown key (UnknownKey; the message lists the known ones), or an impossible
            number.
        TypeError: a value of another type.
    """
    config = _from_dict(values, TrainConfig, "")
    config.model = named_by(config.model, trust)
    config.optimizer.name = named_by(config.optimizer.name, trust)
    config.optimizer.scheduler = named_by(config.optimizer.scheduler, trust)
    check_entries(config.augment)
    config.augment = [{**entry, "name": named_by(entry["name"], trust)} for entry in config.augment]
    return config


def _from_dict(values: Any, cls: type, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{where.rstrip('.') or 'a configuration'} must be a {cls.__name__} "
            f"({', '.join(field_types(cls))}), got {shown(values)}"
        )
    known_names, arguments = field_types(cls), {}
    for key, value in values.items():
        if key not in known_names:
            raise UnknownKey(f"{where}{key}", [where + name for name in known_names])
        hint = known_names[key]
        if dataclasses.is_dataclass(hint):
            if value is None:  # a heading with nothing under it
                continue
            arguments[key] = _from_dict(value, cast(type, hint), f"{where}{key}.")
        else:
            arguments[key] = typed(where + key, _number(value, hint), hint)
    return cls(**arguments)


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    found = get_type_hints(cls)
    return {f.name: found[f.name] for f in dataclasses.fields(cls)}


NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
NAMES |= {dict: "{name: value, ...}", list: "a list of {name: value, ...}"}
LARGEST = 2**63 - 1


def typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it is of the type ``hint``, else TypeError; ValueError for too large a number."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in options:
        outer = get_origin(kind) or kind
        if outer is float and type(value) is int:
            outer = int
        if isinstance(value, outer) and not (outer in (int, float) and isinstance(value, bool)):
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"{name} can be at most {LARGEST}, got {shown(value)}")
            if outer is dict and (odd := [key for key in value if not isinstance(key, str)]):
                raise TypeError(f"{name} takes names for keys, got {shown(odd[0])}")
            return value
    kind = options[0]
    if dataclasses.is_dataclass(kind):
        wanted = f"a {cast(Any, kind).__name__} ({', '.join(field_types(cast(Any, kind)))})"
    else:
        wanted = NAMES.get(get_origin(kind) or kind, str(kind))
    raise TypeError(f"{name} must be {wanted}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    try:
        text = reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def _number(value: Any, hint: Any) -> Any:
    """YAML 1.1 reads 1e-3, without a dot, as text."""
    if isinstance(value, str) and float in (hint, *get_args(hint)):
        try:
            return float(value)
        except ValueError:
            pass
    return value
