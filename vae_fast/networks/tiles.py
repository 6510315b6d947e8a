"""Decode large maps in overlapping tiles, one image at a time, to save memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(
    decode: Callable[[Tensor], Tensor], maps: Tensor, tile: int, overlap: float = 0.25
) -> Tensor:
    """``decode(maps)`` from overlapping tiles, (N, C', f H, f W).

    Linear ramps that sum to 1 blend the overlaps. The result differs from ``decode(maps)`` if the
    network's receptive field exceeds the overlap, as with attention and norms over a whole map.

    Args:
        decode: (1, C, h, w) to (1, C', f h, f w), for any h and w.
        maps: (N, C, H, W).
        tile: height and width of a tile, in positions of ``maps``.
        overlap: the fraction of a tile that it shares with the next, in [0, 0.5].
    """
    if tile < 1 or not 0.0 <= overlap <= 0.5:
        raise ValueError(
            f"tile must be at least 1 and overlap in [0, 0.5], got {tile} and {overlap}"
        )
    if len(maps) == 0:
        return decode(maps)
    return torch.cat([_image(decode, image.unsqueeze(0), tile, overlap) for image in maps])


def _image(decode: Callable[[Tensor], Tensor], maps: Tensor, tile: int, overlap: float) -> Tensor:
    height, width = maps.shape[2:]
    if height <= tile and width <= tile:
        return decode(maps)
    shared = min(tile - 1, math.floor(tile * overlap))
    out: Tensor | None = None
    for top, rows in _spans(height, tile, shared):
        for left, columns in _spans(width, tile, shared):
            made = decode(maps[:, :, top : top + rows, left : left + columns])
            f = made.shape[2] // rows
            if out is None:
                out = made.new_zeros((*made.shape[:2], f * height, f * width))
            down = _ramp(top, rows, height, shared, f, made)
            across = _ramp(left, columns, width, shared, f, made)
            part = out[:, :, f * top : f * (top + rows), f * left : f * (left + columns)]
            part += made * down.unsqueeze(1) * across
    assert out is not None  # an image has a tile
    return out


def _spans(size: int, tile: int, shared: int) -> list[tuple[int, int]]:
    """(start, length) of the tiles along one side; all but the last have the full length."""
    starts = [0]
    while starts[-1] + tile < size:
        starts.append(starts[-1] + tile - shared)
    return [(start, min(tile, size - start)) for start in starts]


def _ramp(start: int, length: int, size: int, shared: int, f: int, like: Tensor) -> Tensor:
    """A tile's weights along one side: they rise over the overlap with the previous tile and fall
    over the overlap with the next."""
    weights = like.new_ones(f * length)
    n = f * shared
    if n:
        rising = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) / n
        if start > 0:
            weights[:n] = rising
        if start + length < size:
            weights[-n:] = 1.0 - rising
    return weights
