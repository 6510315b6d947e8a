"""From a configuration to data and model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vae_fast import data as datasets
from vae_fast import models
from vae_fast.train.config import GIVEN, OPTIMIZERS, TrainConfig, data_of


def load_data(config: TrainConfig, train: Any = None, val: Any = None) -> tuple[Any, Any]:
    """Training and validation data of ``config.data``, or those given instead, which it then names.

    With static binarisation the training data come drawn; all else is drawn batch by batch.
    """
    if (train is None) != (val is None):
        raise TypeError("train_data and val_data: give both, or neither")
    given = train is not None
    if not given:
        train, val = (datasets.load(data_of(config), split=split) for split in ("train", "val"))
    train, val = datasets.as_data(train), datasets.as_data(val)
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


def build_model(config: TrainConfig, input_shape: Sequence[int]) -> nn.Module:
    """The model of ``config`` for samples of ``input_shape``."""
    try:
        return models.build(config.model, tuple(input_shape), **config.model_args)
    except TypeError as error:
        raise ValueError(
            f"model_args {config.model_args} don't fit {config.model}: {error}"
        ) from error


def check_labels(model: nn.Module, config: TrainConfig, train: Any) -> None:
    """Raise ValueError if the model is conditioned on labels and the data have none."""
    infers = hasattr(model, "predict")  # and takes what labels there are
    if getattr(model, "uses_labels", False) and not infers and not train.labelled:
        raise ValueError(
            f"{config.model} is conditioned on labels, and {config.data} has none: train on data "
            "with labels, or another --model"
        )


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of ``config.optimizer``; adam and adamw are torch's fused ones."""
    name, arguments = config.optimizer.name, dict(config.optimizer.args)
    if name in OPTIMIZERS:
        arguments.setdefault("fused", True)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    else:
        module, _, attribute = name.partition(":")
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"optimizer.name {name!r} leads nowhere: {error}") from None
    try:
        return kind(parameters, lr=config.lr, **arguments)
    except TypeError as error:
        raise ValueError(f"optimizer.args {arguments} don't fit {name}: {error}") from error


def compile_networks(model: nn.Module) -> None:
    """Make the model's networks, its children with parameters, run under torch.compile.

    In place: parameters and state_dict keep their names.
    """
    for network in model.children():
        if any(True for _ in network.parameters()):
            network.compile()


def final_beta(config: TrainConfig) -> float:
    """beta as configured, or else the model's own default."""
    if config.objective.beta is not None:
        return config.objective.beta
    return models.OBJECTIVES.get(config.model, {}).get("beta", 1.0)
