"""Build data, model and optimizer from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vae_fast import data as datasets
from vae_fast import models
from vae_fast.data.arrays import ArrayData
from vae_fast.data.datasets import DatasetData, check_known_labels
from vae_fast.data.npy import map_npy
from vae_fast.data.ranges import LabelRange
from vae_fast.data.shards import ShardData
from vae_fast.data.streams import StreamData
from vae_fast.import_paths import imported
from vae_fast.models.conditions import Labels
from vae_fast.models.interface import Classifies, Model, conditioning_of, uses_labels
from vae_fast.models.phases import phases_of
from vae_fast.train import rng
from vae_fast.train.config import GIVEN, OPTIMIZERS, TrainConfig
from vae_fast.train.distributed import World
from vae_fast.train.memory import check_model
from vae_fast.train.run_data import load_splits


def load_data(config: TrainConfig, train: Any = None, val: Any = None) -> tuple[Any, Any]:
    """Training and validation data of ``config.data``, or the given data, which ``config.data``
    then names.

    With static binarisation the training data are binarised here; otherwise each batch is.
    """
    if (train is None) != (val is None):
        raise TypeError("train_data and val_data: give both, or neither")
    given = train is not None
    if not given:
        train, val = load_splits(config, "train", "val")
    train, val = (datasets.as_data(data, bounded=False) for data in (train, val))
    if config.binarize != "none":  # interprets uint8 as x / 255
        train, val = (datasets.in_support(data, unit=True) for data in (train, val))
    if given and train.name != config.data:
        config.data = GIVEN + train.name
    if train.shape != val.shape:
        raise ValueError(
            f"training samples have shape {tuple(train.shape)}, validation samples "
            f"{tuple(val.shape)}: they must be equal"
        )
    if config.binarize == "static":
        train = datasets.binarized_once(train, config.seed)
    labels = config.labels
    if labels.keep > 0:
        train = datasets.keep_labels(train, labels.keep, seed=config.seed, repeat=labels.repeat)
    return train, val


def build_model(
    config: TrainConfig, input_shape: Sequence[int], device: torch.device | None = None
) -> Model:
    """The model of ``config`` for samples of ``input_shape``, on the CPU.

    A vae_fast model too large for the memory raises ValueError first. ``device`` is the device of
    training, which holds each weight and its gradient, or a process's share of them.
    """

    def build() -> Model:
        return models.build(config.model, tuple(input_shape), **config.model_args)

    try:
        if config.model in models.MODELS:
            share = World().size if config.distributed == "fsdp" else 1
            copies = 1.0 if device is None else 2.0 / share
            check_model(build, config.model_args, input_shape, device, copies)
        return build()
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"model_args {config.model_args} don't fit {config.model}: {error}"
        ) from error


def set_dataset_size(model: nn.Module, train: Any) -> None:
    """Set the model's ``dataset_size`` if it has that attribute and was given no value."""
    if getattr(model, "dataset_size", 0) is None:
        setattr(model, "dataset_size", len(train))  # noqa: B010 (few models have it)


def check_labels(model: Model, config: TrainConfig, *parts: Any) -> tuple[Any, ...]:
    """Training and validation data; ValueError if the model is conditioned on labels and the data
    have none, or other ones.

    Labels that are known without reading the images are checked here. Labels of streams and of some
    torch Datasets are checked as they are read.
    """
    if not uses_labels(model):
        return parts
    infers = isinstance(model, Classifies)  # uses the labels that exist
    if not infers and not all(part.labelled for part in parts):
        raise ValueError(
            f"{config.model} is conditioned on labels, and {config.data} has none: train on data "
            "with labels, or another --model"
        )
    condition = conditioning_of(model)
    if not isinstance(condition, Labels):
        return parts
    least = -1 if infers or config.labels.keep > 0 else 0
    takes = LabelRange(config.model, condition.features, least)
    return tuple(_with_labels_in(takes, part) for part in parts)


def _with_labels_in(takes: LabelRange, data: Any) -> Any:
    if isinstance(data, (DatasetData, StreamData)):
        if isinstance(data, DatasetData):
            check_known_labels(data, takes)
        return replace(data, takes=takes)
    for labels in _labels_of(data):
        wrong = labels[takes.out_of_range(labels)]
        if len(wrong):
            high = int(wrong.max())
            takes.check(high if high >= takes.classes else int(wrong.min()), data.name)
    return data


def _labels_of(data: Any) -> Iterator[torch.Tensor]:
    """The labels of an array or of shards."""
    if isinstance(data, ArrayData) and data.labels is not None:
        yield data.labels
    if isinstance(data, ShardData) and data.labelled:
        for shard in data.shards:
            yield torch.from_numpy(
                map_npy(cast(Path, shard.labels))[shard.start : shard.stop].copy()
            )


def check_single(model: Model, config: TrainConfig, batches: Any, device: torch.device) -> None:
    """Raise ValueError if a batch will have one sample and the model has batch norm, which needs
    more.

    A batch of zeros is tried. The model and the random generators are not changed.
    """
    size = len(batches.data)
    last = size % config.batch_size or config.batch_size
    smallest = min(last, size) // (batches.cuts.world_size)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    if smallest != 1 or not norms:
        return
    x = torch.zeros(1, *batches.data.shape, dtype=batches.data.dtype, device=device)
    labels = (torch.zeros(1, dtype=torch.int64, device=device),)
    given = labels if uses_labels(model) else ()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with rng.forked(config.seed, 0), torch.no_grad():
            for phase in phases_of(model):
                model(x, *given, beta=1.0, **({} if phase.name is None else {"phase": phase.name}))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{size} samples in batches of {config.batch_size} leave a batch of one sample for a "
            f"process, and {config.model} has batch norm, which can't be trained on it: try "
            f"--batch-size {_without_single(size, config.batch_size, batches.cuts.world_size)}, or "
            "another norm"
        ) from None
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _without_single(size: int, near: int, ranks: int) -> int:
    """The batch size nearest to ``near`` that gives every process at least two samples."""
    sizes = range(2 * ranks, max(near, 2 * ranks) * 2 + 1, ranks)
    fit = [b for b in sizes if (size % b or b) // ranks != 1]
    return min(fit, key=lambda b: abs(b - near), default=size)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that ``optimizer.name`` names."""
    if name in OPTIMIZERS:
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    kind = torch.optim.Optimizer
    return imported(name, "optimizer.name", kind, "a subclass of torch.optim.Optimizer")


def build_optimizer(
    config: TrainConfig,
    parameters: list[nn.Parameter],
    names: Mapping[nn.Parameter, str] | None = None,
    phase: str | None = None,
) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
    """The optimizer of ``config.optimizer``, and the arguments that are each param group's own.

    adam and adamw are torch's fused ones.

    Args:
        names: of the parameters, for ``optimizer.groups``.
        phase: whose optimizer this is.
    """
    name, arguments = config.optimizer.name, dict(config.optimizer.args)
    if name in OPTIMIZERS:
        arguments.setdefault("fused", True)
    of_phase = dict(config.optimizer.phases.get(phase or "", {}))
    arguments |= {k: v for k, v in of_phase.items() if k != "lr"}
    kind: Callable[..., torch.optim.Optimizer] = optimizer_class(name)
    groups: dict[int, list[nn.Parameter]] = {}
    entries = config.optimizer.groups
    for p in parameters:
        fits = (fnmatchcase((names or {}).get(p, ""), e["parameters"]) for e in entries)
        groups.setdefault(next((i for i, fit in enumerate(fits) if fit), len(entries)), []).append(
            p
        )
    own = [{**entries[i]} if i < len(entries) else {} for i in groups]
    for arguments_of in own:
        arguments_of.pop("parameters", None)
    given = [
        {"params": group, **{k: _as_pair(v) for k, v in more.items() if k != "lr"}}
        for group, more in zip(groups.values(), own, strict=True)
    ]
    arguments = {k: _as_pair(v) for k, v in arguments.items()}
    try:
        made = kind(given if entries else parameters, lr=config.lr, **arguments)
    except TypeError as error:
        raise ValueError(f"optimizer.args {arguments} don't fit {name}: {error}") from error
    unknown = {key for more in own for key in more} - made.defaults.keys()
    if unknown:
        raise ValueError(
            f"optimizer.groups: {name} has no argument {', '.join(sorted(unknown))}; it has "
            f"{', '.join(made.defaults)}"
        )
    return made, own


def _as_pair(value: Any) -> Any:
    """YAML and JSON have lists where optimizers take tuples, as for betas."""
    return tuple(value) if isinstance(value, list) else value


def check_optimizer(
    config: TrainConfig, names: Iterable[str], phases: Iterable[str | None]
) -> None:
    """Raise ValueError for a group that has no parameters, or a phase that the model doesn't have."""
    names, known = list(names), [name for name in phases if name is not None]
    for entry in config.optimizer.groups:
        if not any(fnmatchcase(name, entry["parameters"]) for name in names):
            raise ValueError(
                f"optimizer.groups: no parameter is called {entry['parameters']}; {config.model} has "
                f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            )
    for name in config.optimizer.phases:
        if name not in known:
            has = f"the phases {', '.join(known)}" if known else "one loss, and no phases"
            raise ValueError(f"optimizer.phases.{name}: {config.model} has {has}")


def compile_networks(model: Model) -> None:
    """Compile the model's networks, its children with parameters, by torch.compile.

    This is in place: parameters and state_dict keep their names.
    """
    for network in model.children():
        if any(True for _ in network.parameters()):
            network.compile()


def final_beta(config: TrainConfig) -> float:
    """beta from the configuration, or else the model's default."""
    if config.objective.beta is not None:
        return config.objective.beta
    return models.OBJECTIVES.get(config.model, {}).get("beta", 1.0)
