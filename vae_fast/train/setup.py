"""From a configuration to data and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vae_fast import data as datasets
from vae_fast import models
from vae_fast.train.config import TrainConfig


def load_data(config: TrainConfig, train: Any = None, val: Any = None) -> tuple[Any, Any]:
    """Training and validation data of ``config.data``, or those given instead."""
    if (train is None) != (val is None):
        raise TypeError("train_data and val_data: give both, or neither")
    if train is None:
        train, val = (datasets.load(config.data, split=split) for split in ("train", "val"))
    train, val = datasets.as_data(train), datasets.as_data(val)
    if train.shape != val.shape:
        raise ValueError(
            f"training samples have shape {tuple(train.shape)}, validation samples "
            f"{tuple(val.shape)}: they must be equal"
        )
    return train, val


def build_model(config: TrainConfig, input_shape: Sequence[int]) -> nn.Module:
    """The model of ``config`` for samples of ``input_shape``."""
    try:
        return models.build(config.model, tuple(input_shape), **config.model_args)
    except TypeError as error:
        raise ValueError(
            f"model_args {config.model_args} don't fit {config.model}: {error}"
        ) from error


def final_beta(config: TrainConfig) -> float:
    """beta as configured, or else the model's own default."""
    if config.objective.beta is not None:
        return config.objective.beta
    return models.OBJECTIVES.get(config.model, {}).get("beta", 1.0)
