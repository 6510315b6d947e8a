"""Columns of real values brought to one scale: decided when a run begins, kept in its model."""

from __future__ import annotations

import math
from typing import Any

from vae_fast.data import as_data
from vae_fast.data.columns import statistics_of
from vae_fast.data.ranges import check_digits
from vae_fast.models import MODELS
from vae_fast.models.interface import Model, learned_prior_of, likelihood_of
from vae_fast.models.likelihoods import make_likelihood
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.train.config import TrainConfig


def decide(config: TrainConfig, train: Any, *, begins: bool) -> str:
    """Decide ``config.standardize`` if it is "auto", and set ``model_args`` accordingly.

    Tables whose columns are real values are standardized. If no likelihood was asked for and the
    values do not fit Bernoulli's, it becomes a Gaussian.

    Args:
        train: the training data.
        begins: False for a resumed run, which keeps the choice in its config.yaml.

    Returns:
        What was decided, in a sentence for the user; "" if nothing was.
    """
    args = dict(config.model_args)
    options = args.get("likelihood_options") or {}
    asked = bool(options.get("standardize"))
    if begins and asked and config.standardize == "off":
        raise ValueError(
            "standardize is off, and model_args.likelihood_options.standardize is true: give one"
        )
    if not begins or asked:
        config.standardize = "on" if asked else "off"
        return ""
    if config.standardize == "off" or (config.standardize == "auto" and not _is_table(train)):
        config.standardize = "off"
        return ""
    why = _why_not(config, train)
    said = ""
    if not why and _takes_default(config):
        said = ", the likelihood gaussian with a variance that the decoder gives"
        args["likelihood"] = "gaussian"
        options = {"variance": "learned"} | options
    if not why:
        target = _target(args.get("likelihood", "bernoulli"), options, train.shape)
        if target != "real":
            why = f"its likelihood, {args.get('likelihood', 'bernoulli')}, is not of real values"
    if why:
        if config.standardize == "on":
            raise ValueError(f"standardize on does not fit this run: {why}")
        config.standardize = "off"
        return ""
    args["likelihood_options"] = options | {"standardize": True}
    config.model_args = args
    config.standardize = "on"
    return (
        f"{train.name}: columns are standardized{said}; the model keeps their means and deviations, "
        "and its outputs are in the data's units (--standardize off leaves them as they are)"
    )


def _is_table(data: Any) -> bool:
    return getattr(data, "columns", None) is not None


def _takes_default(config: TrainConfig) -> bool:
    return "likelihood" not in config.model_args


def _why_not(config: TrainConfig, train: Any) -> str:
    """Why nothing can be standardized, or ""."""
    if config.model not in MODELS:
        return f"{config.model} is a model of your own, which has to do it itself"
    if config.model == "vrae":
        return "a vrae reads steps, not columns"
    if config.binarize != "none":
        return f"binarize {config.binarize} makes pixels of 0 and 1"
    if not train.dtype.is_floating_point:
        return f"{train.name} is {str(train.dtype).removeprefix('torch.')}, not real values"
    low, high = getattr(train, "range", (-math.inf, math.inf))
    if _takes_default(config) and 0 <= low and high <= 1:
        return f"{train.name} lies in [0, 1], which the default likelihood, bernoulli, needs"
    return ""


def _target(likelihood: Any, options: dict[str, Any], shape: Any) -> str:
    try:
        return make_likelihood(likelihood, tuple(shape), **options).target
    except (TypeError, ValueError):
        return "real"  # building the model raises the error


def fit_standardization(model: Model, data: Any) -> None:
    """Give a model that standardizes columns their means and deviations in ``data``.

    A Trainer does this when a run begins. Models without such columns are left alone.

    Args:
        model: built with ``likelihood_options={"standardize": True}``.
        data: the training data, anything that ``vae_fast.data.as_data`` takes.

    Raises:
        ValueError: a column whose values float32 can't tell apart; data of another shape.
    """
    columns = standardized(likelihood_of(model))
    if columns is None:
        return
    if hasattr(learned_prior_of(model), "pseudo_inputs"):
        raise ValueError(
            "a vamp prior's pseudo-inputs are not standardized: take prior mixture, or bring the "
            "columns to a common scale before and --standardize off"
        )
    data = as_data(data, bounded=False)
    if tuple(data.shape) != tuple(model.input_shape):
        raise ValueError(
            f"{data.name} has samples of shape {tuple(data.shape)}, the model takes "
            f"{tuple(model.input_shape)}"
        )
    mean, std = statistics_of(data)
    check_digits(mean, std, data.name, getattr(data, "columns", None))
    columns.fit(mean, std)
