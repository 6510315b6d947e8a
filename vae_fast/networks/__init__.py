"""Encoders, (N, *shape) to (N, features), and decoders, (N, features) to (N, *shape), by name.

Models accept any other nn.Module with these shapes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vae_fast.networks.device import device_and_dtype
from vae_fast.networks.images import (
    conv_decoder,
    conv_encoder,
    image_shape,
    pyramid,
    resnet_decoder,
    resnet_encoder,
    upsample,
)
from vae_fast.networks.vectors import mlp, mlp_decoder, mlp_encoder

__all__ = [
    "DECODERS",
    "ENCODERS",
    "device_and_dtype",
    "image_shape",
    "make_decoder",
    "make_encoder",
    "mlp",
    "pyramid",
    "upsample",
]

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp_encoder,
    "conv": conv_encoder,
    "resnet": resnet_encoder,
}
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp_decoder,
    "conv": conv_decoder,
    "resnet": resnet_decoder,
}


def make_encoder(
    network: str, input_shape: Sequence[int], features: int, **options: Any
) -> nn.Module:
    """An encoder by the name of its network: mlp, conv or resnet."""
    _check_name(network)
    return ENCODERS[network](input_shape, features, **options)


def make_decoder(
    network: str, features: int, output_shape: Sequence[int], **options: Any
) -> nn.Module:
    """The decoder that goes with ``make_encoder``."""
    _check_name(network)
    return DECODERS[network](features, output_shape, **options)


def _check_name(network: str) -> None:
    if network not in ENCODERS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(ENCODERS)}")
