"""Convolutional encoders and decoders of images.

Encoders halve height and width at each stage, rounding up. The decoders restore the same sizes, so
any image size works.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_counts
from vae_fast.layers import MLP
from vae_fast.networks.vectors import activation_of, mlp, norm_of
from vae_fast.upsampling import can_spread, doubled, is_unchanged

UPSAMPLINGS = ("transposed", "resize")
SMALLEST = 8  # the side of the smallest maps of a ``conv`` network, by default


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(
            f"conv and resnet networks need images of shape (channels, height, width), "
            f"got {tuple(shape)}; use network='mlp' for other data"
        )
    channels, height, width = shape
    return channels, height, width


def pyramid(height: int, width: int, stages: int) -> list[tuple[int, int]]:
    """Sizes after 0, 1, ... halvings, rounding up, as a stride-2 convolution of size 3 does."""
    sizes = [(height, width)]
    for _ in range(stages):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def stage_shapes(shape: Sequence[int], channels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Shapes (channels, height, width) from the image to the smallest feature map, one stage of
    stride 2 apart. Encoders go through them forwards, decoders backwards.
    """
    check_counts("channels", channels)
    n_channels, height, width = image_shape(shape)
    sizes = pyramid(height, width, len(channels))
    return [(n, *size) for n, size in zip((n_channels, *channels), sizes, strict=True)]


def default_channels(shape: Sequence[int]) -> tuple[int, ...]:
    """(32, 64, 64, ...): stages down to maps of at most ``SMALLEST`` squared, two at least.

    The linear layers beside larger maps would have most of a network's parameters, and take most
    of a step.
    """
    sizes = pyramid(*image_shape(shape)[1:], 32)
    stages = next(n for n, size in enumerate(sizes) if max(size) <= SMALLEST)
    return (32, *[64] * max(stages - 1, 1))


def downsampling(n_in: int, n_out: int) -> nn.Conv2d:
    """The convolution that goes with ``upsample``."""
    return nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)


class Resize(nn.Sequential):
    """Nearest-neighbour upsampling, then a 3x3 convolution.

    Where the size doubles, both are one transposed convolution (``spread``), which gives the same
    result up to rounding and holds no upsampled input.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for layer in self:
                x = layer(x)
        elif _doubles(self[0], x) and can_spread(self[1]):
            x = doubled(x, cast(nn.Conv2d, self[1]))
        else:
            x = super().forward(x)  # type: ignore[no-untyped-call]
        return x


def _doubles(upsampling: nn.Module, x: Tensor) -> bool:
    height, width = x.shape[-2:]
    return is_unchanged(upsampling, nn.Upsample) and upsampling.size == (2 * height, 2 * width)


def upsample(n_in: int, n_out: int, size: Sequence[int], kind: str = "transposed") -> nn.Module:
    """Upsample maps of side n to exactly ``size``, each side of which is 2 n - 1 or 2 n.

    Args:
        kind: ``transposed`` is a transposed convolution. Neighbouring outputs use one, two or four
            weights of the kernel, which can produce checkerboard artefacts. ``resize`` is
            nearest-neighbour upsampling and a convolution, without these (Odena et al. 2016).
    """
    _check_upsampling(kind)
    if kind == "resize":
        return Resize(nn.Upsample(size=tuple(size)), nn.Conv2d(n_in, n_out, 3, padding=1))
    height, width = size
    padding = (1 - height % 2, 1 - width % 2)
    return nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding)


def _check_upsampling(kind: str) -> None:
    if kind not in UPSAMPLINGS:
        raise ValueError(f"unknown upsampling {kind!r}; known: {', '.join(UPSAMPLINGS)}")


def conv_encoder(
    input_shape: Sequence[int],
    features: int,
    *,
    channels: Sequence[int] | None = None,
    hidden: int = 256,
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "resize",
) -> nn.Sequential:
    """Stride-2 convolutions, one per entry of ``channels`` (``default_channels``), then an MLP with
    one hidden layer. Only the decoder uses ``upsampling``."""
    _check_upsampling(upsampling)
    shapes = stage_shapes(
        input_shape, default_channels(input_shape) if channels is None else channels
    )
    layers: list[nn.Module] = []
    for (n_in, *_), (n_out, *_) in itertools.pairwise(shapes):
        layers.append(downsampling(n_in, n_out))
        layers += [*norm_of(norm, n_out, spatial=True), activation_of(activation)]
    sizes = [math.prod(shapes[-1]), hidden, features]
    head = mlp(sizes, activation=activation, dropout=dropout)
    return MLP(*layers, nn.Flatten(), *head)


def conv_decoder(
    features: int,
    output_shape: Sequence[int],
    *,
    channels: Sequence[int] | None = None,
    hidden: int = 256,
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "resize",
) -> nn.Sequential:
    """The mirror image of ``conv_encoder``. ``upsampling`` is the ``kind`` of ``upsample``."""
    channels = default_channels(output_shape) if channels is None else channels
    small, *larger = reversed(stage_shapes(output_shape, channels))
    layers: list[nn.Module] = [
        *mlp([features, hidden, math.prod(small)], activation=activation, dropout=dropout),
        activation_of(activation),
        nn.Unflatten(1, small),
    ]
    for rung, ((n_in, *_), (n_out, *size)) in enumerate(itertools.pairwise([small, *larger]), 1):
        layers.append(upsample(n_in, n_out, tuple(size), upsampling))
        if rung < len(larger):  # the last layer outputs the likelihood's parameters
            layers += [*norm_of(norm, n_out, spatial=True), activation_of(activation)]
    return MLP(*layers)


class ResidualBlock(nn.Module):
    """x + f(x), where f is norm, activation and 3x3 convolution, twice (He et al. 2016, v2)."""

    def __init__(
        self, channels: int, *, activation: str = "silu", norm: str = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)  # the block starts as the identity, so deep networks train
        nn.init.zeros_(last.get_parameter("bias"))
        self.residual = nn.Sequential(
            *norm_of(norm, channels, spatial=True),
            activation_of(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            *norm_of(norm, channels, spatial=True),
            activation_of(activation),
            nn.Dropout(dropout),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


def _residuals(blocks: int, channels: int, **options: Any) -> list[nn.Module]:
    return [ResidualBlock(channels, **options) for _ in range(blocks)]


def resnet_encoder(
    input_shape: Sequence[int],
    features: int,
    *,
    channels: Sequence[int] = (32, 64),
    blocks: int = 1,
    activation: str = "silu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "resize",
) -> nn.Sequential:
    """A strided convolution and ``blocks`` residual blocks per stage, then one linear layer.
    Only the decoder uses ``upsampling``."""
    _check_upsampling(upsampling)
    shapes = stage_shapes(input_shape, channels)
    layers: list[nn.Module] = []
    for (n_in, *_), (n_out, *_) in itertools.pairwise(shapes):
        layers.append(downsampling(n_in, n_out))
        layers += _residuals(blocks, n_out, activation=activation, norm=norm, dropout=dropout)
    layers += [activation_of(activation), nn.Flatten(), nn.Linear(math.prod(shapes[-1]), features)]
    return MLP(*layers)


def resnet_decoder(
    features: int,
    output_shape: Sequence[int],
    *,
    channels: Sequence[int] = (32, 64),
    blocks: int = 1,
    activation: str = "silu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "resize",
) -> nn.Sequential:
    """The mirror image of ``resnet_encoder``."""
    small, *larger = reversed(stage_shapes(output_shape, channels))
    layers: list[nn.Module] = [nn.Linear(features, math.prod(small)), nn.Unflatten(1, small)]
    for (n_in, *_), (n_out, *size) in itertools.pairwise([small, *larger]):
        layers += _residuals(blocks, n_in, activation=activation, norm=norm, dropout=dropout)
        layers += [activation_of(activation), upsample(n_in, n_out, tuple(size), upsampling)]
    return MLP(*layers)
