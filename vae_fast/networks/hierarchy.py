"""The networks of a top-down hierarchy: the bottom-up pass, one top-down level, and the output.

Activations are (N, width, h, w). An MLP has h = w = 1, where a convolution is a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional.checks import check_count, check_counts
from vae_fast.networks.images import image_shape, pyramid, upsample
from vae_fast.networks.scripting import NotScriptable

Stage = tuple[tuple[int, int], int]  # ((height, width), number of levels)


def bottleneck(n_in: int, n_out: int, size: tuple[int, int], scale: float = 1.0) -> nn.Sequential:
    """GELUs and 1x1, 3x3, 3x3, 1x1 convolutions (Child 2020, figure 3); two linear layers at size
    1. ``scale`` multiplies the last layer's initial weights.
    """
    if size == (1, 1):
        widths, kernels = [n_in, n_in, n_out], [1, 1]
    else:
        middle = max(n_in // 4, 8)
        spatial = 3 if max(size) > 2 else 1
        widths, kernels = [n_in, middle, middle, middle, n_out], [1, spatial, spatial, 1]
    layers: list[nn.Module] = []
    for i, kernel in enumerate(kernels):
        convolution = nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)
        # torch's default initialisation would shrink the signal at each layer.
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.get_parameter("bias"))
        layers += [nn.GELU(), convolution]
    with torch.no_grad():
        layers[-1].get_parameter("weight").mul_(scale)
    return nn.Sequential(*layers)


class BottomUp(NotScriptable, nn.Module):
    """Maps x to one activation per stage, (N, width, h, w), coarsest first."""

    def __init__(self, stem: nn.Module, stages: Sequence[Stage], width: int) -> None:
        super().__init__()
        self.stem = stem
        self.sizes = [size for size, _ in stages]
        self.stages = nn.ModuleList(
            nn.ModuleList(bottleneck(width, width, size, scale=levels**-0.5) for _ in range(levels))
            for size, levels in stages
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.stem(x)
        activations = []
        for size, stage in zip(reversed(self.sizes), reversed(self.stages), strict=True):
            if h.shape[2:] != size:
                h = F.adaptive_avg_pool2d(h, size)
            for block in cast(nn.ModuleList, stage):
                h = h + block(h)
            activations.append(h)
        return activations[::-1]


class Level(nn.Module):
    """One level: p(z_l | h), q(z_l | h, x), and the update of h, the top-down state, by z_l."""

    def __init__(self, width: int, z_channels: int, size: tuple[int, int], depth: int) -> None:
        super().__init__()
        self.size = size
        self.z_channels = z_channels
        self.z_shape = (z_channels, *size)
        self.prior_network = bottleneck(width, 2 * z_channels + width, size, scale=0.0)
        self.posterior_network = bottleneck(2 * width, 2 * z_channels, size, scale=0.3)
        self.z_to_h = nn.Conv2d(z_channels, width, 1)
        with torch.no_grad():
            self.z_to_h.weight.mul_(depth**-0.5)
        self.residual = bottleneck(width, width, size, scale=depth**-0.5)

    def resize(self, h: Tensor) -> Tensor:
        return h if h.shape[2:] == self.size else F.interpolate(h, self.size, mode="nearest")

    def prior(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu and logvar of p(z_l | h), and h plus the prior network's residual."""
        mu, logvar, added = self.prior_network(h).split(
            [self.z_channels, self.z_channels, h.shape[1]], dim=1
        )
        return mu, logvar, h + added

    def posterior(self, h: Tensor, activation: Tensor) -> Tensor:
        """mu and logvar of q(z_l | h, x), stacked: (N, 2 * z_channels, h, w)."""
        return self.posterior_network(torch.cat([h, activation], 1))

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        h = h + self.z_to_h(z)
        return h + self.residual(h)


def networks_of_hierarchy(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    network: str | None,
    levels: Sequence[Sequence[int]] | int | None,
    width: int,
    hidden: Sequence[int],
) -> tuple[nn.Module, nn.Module, list[Stage]]:
    """The stem, the output and the stages of a hierarchy.

    Args:
        network: "mlp" or "conv"; None for the one that takes these ``levels``, an mlp by default.
        levels: of an mlp their number (3). Of a conv network pairs (height, number of levels),
            coarse to fine, by default like VDVAE's for small images.
        width: channels of all activations.
        hidden: hidden sizes of an mlp's stem and output.
    """
    if network is None:
        network = "mlp" if levels is None or isinstance(levels, int) else "conv"
    check_count("width", width)
    if network == "mlp":
        levels = 3 if levels is None else levels
        if not isinstance(levels, int):
            raise TypeError(
                f"levels of an mlp must be a whole number, how many there are, got {levels!r}"
            )
        check_count("levels", levels)
        check_counts("hidden", hidden)
        return *mlp_ends(input_shape, output_shape, width, hidden), [((1, 1), 1)] * levels
    if network != "conv":
        raise ValueError(f"a hierarchy's network must be mlp or conv, got {network!r}")
    if levels is None:
        sides = pyramid(*image_shape(input_shape)[1:], 16)
        coarse_to_fine = sorted({side for side, _ in sides[1:5]} | {1})
        levels = [(side, min(i + 1, 4)) for i, side in enumerate(coarse_to_fine)]
    if not isinstance(levels, Sequence) or not levels or not all(map(is_pair, levels)):
        raise TypeError(f"levels of a conv network are pairs (height, count), got {levels!r}")
    stages = stages_of(levels, input_shape)
    return *conv_ends(input_shape, output_shape, width, stages[-1][0]), stages


def is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2


def mlp_ends(
    input_shape: Sequence[int], output_shape: Sequence[int], width: int, hidden: Sequence[int]
) -> tuple[nn.Module, nn.Module]:
    """Stem and output for vectors: linear layers around a hierarchy with h = w = 1."""
    sizes = [math.prod(input_shape), *hidden, width]
    stem: list[nn.Module] = [nn.Flatten()]
    for i in range(len(sizes) - 1):
        stem += [nn.GELU()] * (i > 0) + [nn.Linear(sizes[i], sizes[i + 1])]
    sizes = [width, *reversed(hidden), math.prod(output_shape)]
    output: list[nn.Module] = [nn.Flatten()]
    for i in range(len(sizes) - 1):
        output += [nn.GELU(), nn.Linear(sizes[i], sizes[i + 1])]
    return (
        nn.Sequential(*stem, nn.Unflatten(1, (width, 1, 1))),
        nn.Sequential(*output, nn.Unflatten(1, tuple(output_shape))),
    )


def conv_ends(
    input_shape: Sequence[int], output_shape: Sequence[int], width: int, finest: tuple[int, int]
) -> tuple[nn.Module, nn.Module]:
    """Stem and output for images, which halve and double them to and from the finest stage."""
    channels, height, breadth = image_shape(input_shape)
    sizes = pyramid(height, breadth, 16)
    sizes = sizes[: sizes.index(finest) + 1]
    stem: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
    output: list[nn.Module] = []
    if len(sizes) > 1:
        stem = [nn.Conv2d(channels, width, 3, stride=2, padding=1)]
        for _ in sizes[2:]:
            stem += [nn.GELU(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
        for size in reversed(sizes[:-1]):
            output += [nn.GELU(), upsample(width, width, size)]
    output += [nn.GELU(), nn.Conv2d(width, output_shape[0], 3, padding=1)]
    return nn.Sequential(*stem), nn.Sequential(*output)


def stages_of(levels: Sequence[Sequence[int]], input_shape: Sequence[int]) -> list[Stage]:
    """Stages of an image's pyramid from pairs (height, number of levels), coarsest first."""
    _, height, width = image_shape(input_shape)
    sizes = {h: (h, w) for h, w in pyramid(height, width, 16)}
    stages = []
    for side, count in levels:
        if side not in sizes or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"levels are pairs (height, count) with a height of the image's pyramid "
                f"{sorted(sizes)} and a count of 1 or more, got {(side, count)}"
            )
        stages.append((sizes[side], count))
    if [s for s, _ in stages] != sorted(s for s, _ in stages):
        raise ValueError(f"levels go from coarse to fine, got {[tuple(pair) for pair in levels]}")
    return stages
