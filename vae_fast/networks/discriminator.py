"""The discriminator of adversarial losses on images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vae_fast.functional.checks import check_count
from vae_fast.networks.images import image_shape


def patch_discriminator(input_shape: Sequence[int], channels: int, layers: int) -> nn.Sequential:
    """Images (N, C, H, W) to a logit for each patch, (N, 1, h, w) (Isola et al. 2017).

    Group norms replace batch norms, so a sample's loss does not depend on the rest of the batch.
    """
    check_count("channels", channels)
    check_count("layers", layers)
    n, height, width = image_shape(input_shape)
    if min(height, width) < 6:
        raise ValueError(
            f"a discriminator of patches needs images of at least 6 x 6, and these are {height} x {width}"
        )
    depth = max(1, min(layers, min(height, width).bit_length() - 3))
    made: list[nn.Module] = [nn.Conv2d(n, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    wide = channels
    for i in range(1, depth + 1):
        out, stride = channels * min(2**i, 8), 2 if i < depth else 1
        made += [nn.Conv2d(wide, out, 4, stride, 1, bias=False), _norm(out), nn.LeakyReLU(0.2)]
        wide = out
    return nn.Sequential(*made, nn.Conv2d(wide, 1, 4, 1, 1))


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
