"""The three pictures of a run: reconstructions, samples, and the curves of its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.extras import need
from vae_fast.figures import figure_for, printable

_PAPER, _INK, _FAINT = (255, 255, 255), (34, 38, 46), (134, 140, 150)
_TRAIN, _VAL = "#9db7d5", "#1f4e8c"
_TILE = 84  # the least size of a tile in pixels
_GAP, _MARGIN = 3, 28


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Images (N, C, H, W), uint8 or floating in [0, 1], as (N, H, W, 3) for a picture.

    One channel is shown grey, two as red and green; of more than three, the first three are shown.
    """
    if images.dtype != torch.uint8:
        images = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = images.cpu().permute(0, 2, 3, 1).numpy()
    channels = pixels.shape[-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=-1)
    return pixels[..., :3]


def draw_reconstructions(
    path: Path,
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    caption: str,
    columns: Any = 10,
) -> None:
    """Write a PNG of row pairs: originals above their reconstructions.

    Args:
        originals, reconstructions: (N, C, H, W), uint8 or floating in [0, 1].
    """
    above, below = to_uint8(originals), to_uint8(reconstructions)
    columns = min(columns, len(above))
    bands = [
        np.concatenate(
            [_row(above[i : i + columns], columns), _row(below[i : i + columns], columns)]
        )
        for i in range(0, len(above), columns)
    ]
    _write_page(path, bands, "Reconstructions", f"originals above · {caption}", band_gap=14)


def draw_samples(
    path: Path, images: torch.Tensor, caption: str, columns: int = 10, title: str = "Samples"
) -> None:
    """Write a PNG of samples (N, C, H, W), uint8 or floating in [0, 1], ``columns`` to a row."""
    tiles = to_uint8(images)
    columns = min(columns, len(tiles))
    bands = [_row(tiles[i : i + columns], columns) for i in range(0, len(tiles), columns)]
    _write_page(path, bands, title, caption, band_gap=0)


def draw_series(
    path: Path,
    series: Sequence[torch.Tensor],
    names: Sequence[str],
    caption: str,
    columns: int = 5,
    table: Sequence[str] | None = None,
) -> None:
    """Write a PNG of series against their steps, or of a table's rows, a small diagram for each.

    Args:
        series: one or more of (N, T), drawn over each other: originals and reconstructions.
        names: of each.
        table: the names of a table's T columns. They have no order, so dots are drawn and no lines.
    """
    lines = [values.detach().float().cpu().numpy() for values in series]
    rows = -(-len(lines[0]) // columns)
    named = table is not None and len(table) <= 8
    below = 0.75 if named else 0.4  # inches
    size = (2.2 * columns, 1.3 * rows + 0.4 + below)
    with figure_for(path, size, 130) as figure:
        figure.subplots_adjust(
            left=0.04, right=0.99, bottom=below / size[1], top=1.0 - 0.5 / size[1]
        )
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        style = {} if table is None else {"linestyle": "", "marker": "o", "markersize": 4}
        for axis in axes[-1]:
            if table is not None and named:
                axis.set_xticks(
                    range(len(table)), list(map(printable, table)), rotation=30, ha="right"
                )
            else:
                word = "step" if table is None else "column"
                axis.set_xlabel(word, fontsize=7, color=_hex(_FAINT), labelpad=1)
        for place, axis in enumerate(axes.flat):
            axis.spines[["top", "right"]].set_visible(False)
            axis.spines[["left", "bottom"]].set_color("#c9cdd3")
            axis.tick_params(colors=_hex(_FAINT), length=2, labelsize=7)
            for values, name, color in zip(lines, names, (_TRAIN, _VAL), strict=False):
                if place < len(values):
                    axis.plot(values[place], color=color, linewidth=1.5, label=name, **style)
        if len(names) > 1:
            handles = axes.flat[0].get_legend_handles_labels()
            figure.legend(*handles, frameon=False, fontsize=7, loc="upper right", ncols=2)
        figure.suptitle(printable(caption), x=0.01, ha="left", fontsize=9, color=_hex(_FAINT))


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], caption: str) -> None:
    """Write a PNG of loss, reconstruction and KL against the step, from rows of metrics.jsonl."""
    with figure_for(path, (11, 3.5), 150, layout="constrained") as figure:
        axes = figure.subplots(1, 3)
        titles = {"loss": "Loss", "recon": "Reconstruction", "kl": "KL divergence"}
        for axis, (key, title) in zip(axes, titles.items(), strict=True):
            _draw_curve(axis, rows, key)
            axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_hex(_INK))
        axes[0].set_ylabel("nats per sample", fontsize=9, color=_hex(_FAINT))
        figure.suptitle(printable(caption), x=0.01, ha="left", fontsize=9, color=_hex(_FAINT))


def _draw_curve(axis: Any, rows: Sequence[dict[str, Any]], key: str) -> None:
    lines = {}
    for split in ("train", "val"):
        points = [(row["step"], row[key]) for row in rows if row["split"] == split]
        points = [(x, y) for x, y in points if y is not None and np.isfinite(y)]
        if points:
            lines[split] = np.array(points if split == "val" else _even(points)).T
    highest = max(lines, key=lambda split: lines[split][1][-1], default=None)
    for split, (x, y) in lines.items():
        is_val = split == "val"
        color = _VAL if is_val else _TRAIN
        marker = "o" if is_val or len(x) == 1 else None  # a line of one point does not show
        axis.plot(x, y, color=color, linewidth=1.8 if is_val else 1.6, marker=marker, markersize=3)
        axis.annotate(
            f" {split} {y[-1]:.1f}" if is_val else f" {split}",
            (x[-1], y[-1]),
            xytext=(2, 5 if split == highest else -9),  # away from the other line's
            textcoords="offset points",
            color=color,
            fontsize=9,
            fontweight="bold" if is_val else "normal",
            annotation_clip=False,
        )
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#c9cdd3")
    axis.tick_params(colors=_hex(_FAINT), length=3, labelsize=9)
    axis.grid(axis="y", color="#eceef1", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel("step", fontsize=9, color=_hex(_FAINT))
    axis.margins(x=0.02, y=0.12)  # room for the words below the last points
    axis.set_xlim(left=0)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=6)


def _even(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of intervals that end at ``step``; a short interval is merged with the one before.

    An epoch's last interval may have a few steps only, and its noisy mean would look like a dip.
    """
    steps = [0.0, *(step for step, _ in points)]
    spans = [after - before for before, after in pairwise(steps)]
    usual = float(np.median(spans))
    joined: list[tuple[float, float, float]] = []  # step, mean, span
    for (step, mean), span in zip(points, spans, strict=True):
        if joined and 0 < span < usual / 2:
            _, last, length = joined.pop()
            mean = (last * length + mean * span) / (length + span)
            span += length
        joined.append((step, mean, span))
    return [(step, mean) for step, mean, _ in joined]


def _row(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (n, H, W, 3) side by side, enlarged by whole pixels, blank up to ``columns``."""
    scale = max(1, -(-_TILE // tiles.shape[1]))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1:3]
    row = np.empty((height + _GAP, columns * (width + _GAP) - _GAP, 3), np.uint8)
    row[:] = _PAPER
    for i, tile in enumerate(tiles):
        left = i * (width + _GAP)
        row[:height, left : left + width] = tile
    return row


def _write_page(
    path: Path, bands: list[np.ndarray], title: str, caption: str, band_gap: int
) -> None:
    image_module = need("PIL.Image", "drawing pictures")
    draw_module = need("PIL.ImageDraw", "drawing pictures")
    head = 62
    height = sum(len(band) for band in bands) + band_gap * (len(bands) - 1) - _GAP
    width = max(bands[0].shape[1], 8 * len(caption))  # a few tiles may be narrower than the text
    page = image_module.new("RGB", (width + 2 * _MARGIN, height + head + 2 * _MARGIN - 8), _PAPER)
    draw = draw_module.Draw(page)
    _write_text(draw, (_MARGIN, _MARGIN - 6), title, _INK, 24)
    _write_text(draw, (_MARGIN, _MARGIN + 26), caption, _FAINT, 14)
    top = head + _MARGIN - 8
    for band in bands:
        page.paste(image_module.fromarray(band[:-_GAP]), (_MARGIN, top))
        top += len(band) + band_gap
    page.save(path, format="PNG")


def _write_text(draw: Any, at: tuple[int, int], text: str, color: Any, size: int) -> None:
    font_module, text = need("PIL.ImageFont", "drawing pictures"), printable(text)
    try:
        draw.text(at, text, color, font_module.load_default(size))
    except (ImportError, OSError, UnicodeError):  # Pillow without FreeType has one font
        text = text.encode("latin-1", "replace").decode("latin-1")
        draw.text(at, text, color, font_module.load_default_imagefont())


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
