"""Multilayer perceptrons, and the activations and norms that networks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from vae_fast.functional.checks import check_counts
from vae_fast.layers import MLP

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
NORMS = ("none", "batch", "layer")


def activation_of(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def norm_of(name: str, features: int, spatial: bool) -> list[nn.Module]:
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; known: {', '.join(NORMS)}")
    if name == "batch":
        return [nn.BatchNorm2d(features) if spatial else nn.BatchNorm1d(features)]
    if name == "layer":
        return [nn.GroupNorm(1, features) if spatial else nn.LayerNorm(features)]
    return []


def mlp(
    sizes: Sequence[int], *, activation: str = "relu", norm: str = "none", dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers of the given sizes, all but the last followed by norm, activation, dropout."""
    if len(sizes) < 2:
        raise ValueError(f"an MLP needs an input and an output size, got {tuple(sizes)}")
    check_counts("an MLP's sizes", sizes)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out), *norm_of(norm, n_out, spatial=False)]
        layers.append(activation_of(activation))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return MLP(*layers)


def mlp_encoder(
    input_shape: Sequence[int], features: int, *, hidden: Sequence[int] = (400,), **options: Any
) -> nn.Sequential:
    """(N, *input_shape) to (N, features); by default one hidden layer of 400, as in PyTorch's VAE
    tutorial."""
    check_counts("hidden", hidden)
    return MLP(nn.Flatten(), *mlp([math.prod(input_shape), *hidden, features], **options))


def mlp_decoder(
    features: int, output_shape: Sequence[int], *, hidden: Sequence[int] = (400,), **options: Any
) -> nn.Sequential:
    """(N, features) to (N, *output_shape), hidden layers in reverse order."""
    check_counts("hidden", hidden)
    sizes = [features, *reversed(hidden), math.prod(output_shape)]
    return MLP(*mlp(sizes, **options), nn.Unflatten(1, tuple(output_shape)))
