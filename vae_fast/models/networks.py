"""Encoders, (N, *shape) to (N, features), and decoders, (N, features) to (N, *shape). Models
accept any other nn.Module with these shapes too.

Convolutional encoders halve height and width at each stage, rounding up. The decoders restore the
same sizes, so any image size works.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
UPSAMPLINGS = ("transposed", "resize")


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def _norm(name: str, features: int, spatial: bool) -> list[nn.Module]:
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
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out), *_norm(norm, n_out, spatial=False)]
        layers.append(_activation(activation))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return MLP(*layers)


def mlp_encoder(
    input_shape: Sequence[int], features: int, *, hidden: Sequence[int] = (400,), **options: Any
) -> nn.Sequential:
    """(N, *input_shape) to (N, features); by default one hidden layer of 400, as in PyTorch's VAE
    tutorial."""
    return MLP(nn.Flatten(), *mlp([math.prod(input_shape), *hidden, features], **options))


def mlp_decoder(
    features: int, output_shape: Sequence[int], *, hidden: Sequence[int] = (400,), **options: Any
) -> nn.Sequential:
    """(N, features) to (N, *output_shape), hidden layers in reverse order."""
    sizes = [features, *reversed(hidden), math.prod(output_shape)]
    return MLP(*mlp(sizes, **options), nn.Unflatten(1, tuple(output_shape)))


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


def ladder(shape: Sequence[int], channels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Shapes (channels, height, width) from the image to the smallest feature map, one stage of
    stride 2 apart. Encoders go through them forwards, decoders backwards.
    """
    n_channels, height, width = image_shape(shape)
    sizes = pyramid(height, width, len(channels))
    return [(n, *size) for n, size in zip((n_channels, *channels), sizes, strict=True)]


def downsampling(n_in: int, n_out: int) -> nn.Conv2d:
    """The convolution that goes with ``upsample``."""
    return nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)


def upsample(n_in: int, n_out: int, size: Sequence[int], kind: str = "transposed") -> nn.Module:
    """Upsample maps of side n to exactly ``size``, each side of which is 2 n - 1 or 2 n.

    Args:
        kind: ``transposed`` is a transposed convolution. Neighbouring outputs use one, two or four
            weights of the kernel, which can produce checkerboard artefacts. ``resize`` is
            nearest-neighbour upsampling and a convolution, without these (Odena et al. 2016).
    """
    _check_upsampling(kind)
    if kind == "resize":
        return nn.Sequential(nn.Upsample(size=tuple(size)), nn.Conv2d(n_in, n_out, 3, padding=1))
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
    channels: Sequence[int] = (32, 64),
    hidden: int = 256,
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "transposed",
) -> nn.Sequential:
    """Stride-2 convolutions, one per entry of ``channels``, then an MLP with one hidden layer.
    Only the decoder uses ``upsampling``."""
    _check_upsampling(upsampling)
    shapes = ladder(input_shape, channels)
    layers: list[nn.Module] = []
    for (n_in, *_), (n_out, *_) in itertools.pairwise(shapes):
        layers.append(downsampling(n_in, n_out))
        layers += [*_norm(norm, n_out, spatial=True), _activation(activation)]
    sizes = [math.prod(shapes[-1]), hidden, features]
    head = mlp(sizes, activation=activation, dropout=dropout)
    return MLP(*layers, nn.Flatten(), *head)


def conv_decoder(
    features: int,
    output_shape: Sequence[int],
    *,
    channels: Sequence[int] = (32, 64),
    hidden: int = 256,
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    upsampling: str = "transposed",
) -> nn.Sequential:
    """The mirror image of ``conv_encoder``. ``upsampling`` is the ``kind`` of ``upsample``."""
    small, *larger = reversed(ladder(output_shape, channels))
    layers: list[nn.Module] = [
        *mlp([features, hidden, math.prod(small)], activation=activation, dropout=dropout),
        _activation(activation),
        nn.Unflatten(1, small),
    ]
    for rung, ((n_in, *_), (n_out, *size)) in enumerate(itertools.pairwise([small, *larger]), 1):
        layers.append(upsample(n_in, n_out, tuple(size), upsampling))
        if rung < len(larger):  # the last layer outputs the likelihood's parameters
            layers += [*_norm(norm, n_out, spatial=True), _activation(activation)]
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
            *_norm(norm, channels, spatial=True),
            _activation(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            *_norm(norm, channels, spatial=True),
            _activation(activation),
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
    upsampling: str = "transposed",
) -> nn.Sequential:
    """A strided convolution and ``blocks`` residual blocks per stage, then one linear layer.
    Only the decoder uses ``upsampling``."""
    _check_upsampling(upsampling)
    shapes = ladder(input_shape, channels)
    layers: list[nn.Module] = []
    for (n_in, *_), (n_out, *_) in itertools.pairwise(shapes):
        layers.append(downsampling(n_in, n_out))
        layers += _residuals(blocks, n_out, activation=activation, norm=norm, dropout=dropout)
    layers += [_activation(activation), nn.Flatten(), nn.Linear(math.prod(shapes[-1]), features)]
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
    upsampling: str = "transposed",
) -> nn.Sequential:
    """The mirror image of ``resnet_encoder``."""
    small, *larger = reversed(ladder(output_shape, channels))
    layers: list[nn.Module] = [nn.Linear(features, math.prod(small)), nn.Unflatten(1, small)]
    for (n_in, *_), (n_out, *size) in itertools.pairwise([small, *larger]):
        layers += _residuals(blocks, n_in, activation=activation, norm=norm, dropout=dropout)
        layers += [_activation(activation), upsample(n_in, n_out, tuple(size), upsampling)]
    return MLP(*layers)


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


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a module's first parameter; the CPU and torch's default dtype for a
    module without parameters, such as a quantised one."""
    parameter = _first_parameter(module)
    if parameter is None:
        return torch.device("cpu"), torch.get_default_dtype()
    return parameter.device, parameter.dtype


def _first_parameter(module: nn.Module) -> Tensor | None:
    """next(module.parameters()) or None, in a tenth of the time, for use at every step."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        found = None if child is None else _first_parameter(child)
        if found is not None:
            return found
    return None
