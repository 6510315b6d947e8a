"""Encoders and decoders with latent maps and attention, of the architecture of Esser et al. 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vae_fast.functional.checks import check_count
from vae_fast.networks.blocks import (
    Downsample,
    NormConv,
    Residual,
    SelfAttention,
    Upsample,
    set_checkpointing,
)
from vae_fast.networks.images import image_shape

# Default options of ``networks_of_maps``.
SIZES: dict[str, Any] = {
    "multipliers": (1, 2, 4),
    "blocks": 1,
    "attention": (),
    "head_channels": 64,
    "dropout": 0.0,
    "checkpointing": "none",
}


class Encoder(nn.Sequential):
    """(N, C, H, W) to (N, out_channels, H / f, W / f), f = 2^(levels - 1).

    Each level has ``blocks`` residual blocks, each followed by attention where ``attends`` is true.
    ``downsample`` connects the levels. A residual block, attention, a residual block and a
    convolution end the network.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        blocks: int,
        groups: int,
        head_channels: int,
        dropout: float,
        downsample: Callable[[int], nn.Module] = Downsample,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        n = widths[0]
        for level, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            if level > 0:
                layers.append(downsample(n))
            for _ in range(blocks):
                layers.append(Residual(n, width, groups, dropout))
                if attention:
                    layers.append(SelfAttention(width, groups, head_channels))
                n = width
        layers += _middle(n, groups, head_channels, dropout)
        super().__init__(*layers, NormConv(n, out_channels, groups))


class Decoder(nn.Sequential):
    """(N, in_channels, h, w) to (N, out_channels, f h, f w): the mirror image of ``Encoder``, with
    one more residual block at each level (Rombach et al. 2022)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        blocks: int,
        groups: int,
        head_channels: int,
        dropout: float,
    ) -> None:
        n = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, n, 3, padding=1)]
        layers += _middle(n, groups, head_channels, dropout)
        levels = list(zip(widths, attends, strict=True))
        for level, (width, attention) in enumerate(reversed(levels)):
            if level > 0:
                layers.append(Upsample(n))
            for _ in range(blocks + 1):
                layers.append(Residual(n, width, groups, dropout))
                if attention:
                    layers.append(SelfAttention(width, groups, head_channels))
                n = width
        super().__init__(*layers, NormConv(n, out_channels, groups))


def _middle(n: int, groups: int, head_channels: int, dropout: float) -> list[nn.Module]:
    return [
        Residual(n, n, groups, dropout),
        SelfAttention(n, groups, head_channels),
        Residual(n, n, groups, dropout),
    ]


def networks_of_maps(
    input_shape: Sequence[int],
    out_channels: int,
    *,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    z_channels: int,
    attention: Sequence[int],
    checkpointing: str,
    features_per_latent: int = 2,
    **options: Any,
) -> tuple[Encoder, Decoder, tuple[int, int, int]]:
    """Encoder, decoder and the latent maps' shape for images of ``input_shape``.

    Args:
        out_channels: the decoder's output channels, the likelihood's parameters.
        channels, multipliers: level i has channels * multipliers[i] channels; f = 2^(levels - 1).
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: map heights at which blocks have attention. The middle always has it.
        checkpointing: "none", "norms" or "blocks" (``vae_fast.networks.blocks``).
        features_per_latent: the encoder's outputs per latent value.
        options: groups, head_channels, dropout.
    """
    in_channels, height, width = image_shape(input_shape)
    sizes = {"channels": channels, "blocks": blocks, "z_channels": z_channels}
    for name, value in [*sizes.items(), *(("a multiplier", m) for m in multipliers)]:
        check_count(name, value)
    if not multipliers:
        raise ValueError("multipliers must have an entry for each level, and there is none")
    f = 2 ** (len(multipliers) - 1)
    if height % f or width % f:
        raise ValueError(
            f"images of {height} x {width} can't be halved {len(multipliers) - 1} times: with "
            f"{len(multipliers)} multipliers, {tuple(multipliers)}, height and width must be "
            f"multiples of {f}; pad or resize the images, or give fewer multipliers"
        )
    heights = [height >> level for level in range(len(multipliers))]
    unknown = [side for side in attention if side not in heights]
    if unknown:
        raise ValueError(
            f"attention is asked for at heights {unknown}, and the maps of images of height "
            f"{height} have heights {heights}"
        )
    widths = [channels * m for m in multipliers]
    attends = [side in attention for side in heights]
    features = features_per_latent * z_channels
    encoder = Encoder(in_channels, features, widths, attends, blocks=blocks, **options)
    decoder = Decoder(z_channels, out_channels, widths, attends, blocks=blocks, **options)
    for network in (encoder, decoder):
        set_checkpointing(network, checkpointing)
    return encoder, decoder, (z_channels, height // f, width // f)
