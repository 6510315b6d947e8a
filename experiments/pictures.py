"""Small picture files: rows of images with captions, as grey or palette PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_fast.extras import need
from vae_fast.pictures import to_uint8

_GAP, _MARGIN, _WORDS = 2, 8, 17  # pixels; _WORDS is a line of text's height
# grey levels: a third of the bytes of 256 levels, with no visible difference at this size
_LEVELS = 32


class Band(NamedTuple):
    """One or more rows of images (N, C, H, W), in [0, 1] or uint8, under a few words."""

    words: str
    images: Tensor


def compose(path: str | Path, bands: Sequence[Band], *, columns: int = 10, scale: int = 2) -> Path:
    """Write the bands, top to bottom, ``columns`` images to a row, each pixel ``scale`` wide."""
    if not bands:
        raise ValueError("a picture needs at least one band of images")
    image_module = need("PIL.Image", "drawing the gallery")
    draw_module = need("PIL.ImageDraw", "drawing the gallery")
    font = need("PIL.ImageFont", "drawing the gallery").load_default(12)
    pages = [(band.words, rows_of(band.images, columns, scale)) for band in bands]
    width = max(page.shape[1] for _, page in pages) + 2 * _MARGIN
    height = sum(_WORDS + page.shape[0] for _, page in pages) + 2 * _MARGIN
    height += 6 * (len(pages) - 1)
    picture = image_module.new("L", (width, height), 255)
    draw, top = draw_module.Draw(picture), _MARGIN
    for words, page in pages:
        draw.text((_MARGIN, top), words, 40, font)
        picture.paste(image_module.fromarray(page), (_MARGIN, top + _WORDS))
        top += _WORDS + page.shape[0] + 6
    picture.quantize(_LEVELS).save(path, format="PNG", optimize=True)
    return Path(path)


def rows_of(images: Tensor, columns: int, scale: int) -> np.ndarray:
    """Images in rows of ``columns``, as one grey page (H, W) uint8 on white."""
    tiles = to_uint8(images).mean(-1).round().astype(np.uint8)
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width = tiles.shape
    rows = -(-n // columns)
    page = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        page[top : top + height, left : left + width] = tile
    return page


def draw_series(path: str | Path, panels: Sequence[tuple[str, Tensor]]) -> Path:
    """Series (n, T), one panel of lines for each of ``panels``."""
    figure_module = need("matplotlib.figure", "drawing series")
    figure = figure_module.Figure(figsize=(6.4, 1.5 * len(panels)), dpi=80, layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (words, series) in zip(axes, panels, strict=True):
        for line in series.detach().cpu():
            axis.plot(line.numpy(), linewidth=1.1)
        axis.set_title(words, loc="left", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
    return shrink(path)


def shrink(path: str | Path, colours: int = 256, width: int = 640) -> Path:
    """Reduce a plot's file size: at most ``width`` pixels, with its own palette."""
    image_module = need("PIL.Image", "drawing the gallery")
    with image_module.open(path) as picture:
        small = picture.convert("RGB")
        if small.width > width:
            size = (width, round(small.height * width / small.width))
            small = small.resize(size, image_module.Resampling.LANCZOS)
        small = small.quantize(colours)
    small.save(path, format="PNG", optimize=True)
    return Path(path)


def ramp(n: int, like: Tensor) -> Tensor:
    """n values from -3 to 3: what a traversal walks through."""
    return torch.linspace(-3, 3, n, dtype=like.dtype)
