"""Pictures of the tasks' results: strips, traversals, a latent map, score histograms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast.extras import need
from vae_fast.figures import figure_for, printable
from vae_fast.pictures import draw_samples


def draw_grid(path: str | Path, rows: Tensor, caption: str, title: str = "Walks") -> None:
    """Draw a grid of images (rows, columns, C, H, W), in [0, 1] or uint8: a traversal, or walks."""
    if rows.dim() != 5:
        raise ValueError(f"a grid is (rows, columns, C, H, W), got {tuple(rows.shape)}")
    draw_samples(Path(path), rows.flatten(0, 1), caption, columns=rows.shape[1], title=title)


def draw_strips(
    path: str | Path, strips: Sequence[Tensor], caption: str, title: str = "Before and after"
) -> None:
    """Draw strips such as before and after, top to bottom: each (N, C, H, W) is one row."""
    shapes = {tuple(s.shape) for s in strips}
    if len(shapes) != 1:
        raise ValueError(f"strips must have one shape, got {sorted(shapes)}")
    as_floats = [s.float() / 255 if s.dtype == torch.uint8 else s.float() for s in strips]
    draw_grid(path, torch.stack([s.cpu() for s in as_floats]), caption, title)


def draw_latent_map(
    path: str | Path,
    codes: Tensor,
    labels: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    caption: str = "",
) -> None:
    """Draw codes (N, D) in the plane, coloured by label: directly for D = 2, else their two
    principal components.
    """
    points = codes.detach().float().cpu()
    axes_names = ("z₁", "z₂")
    if points.shape[1] != 2:
        centred = points - points.mean(0)
        _, _, v = torch.linalg.svd(centred, full_matrices=False)
        points, axes_names = centred @ v[:2].t(), ("first component", "second component")
    with figure_for(path, (6.4, 5.4), 150, layout="constrained") as figure:
        axis = figure.subplots()
        if labels is None:
            axis.scatter(*points.t(), s=3, alpha=0.5, linewidths=0)
        else:
            _scatter(axis, points, labels, names)
        axis.set_xlabel(axes_names[0])
        axis.set_ylabel(axes_names[1])
        axis.set_aspect("equal", adjustable="datalim")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(printable(caption), loc="left", fontsize=9)


def _scatter(axis: Any, points: Tensor, labels: Tensor, names: Sequence[str] | None) -> None:
    """Points in the colours of their labels, with a legend."""
    handles, found = [], sorted(set(labels.tolist()))
    for label in found:
        chosen = points[(labels == label).cpu()]
        color = _colour(int(label), max(*map(int, found), len(names or ()) - 1) + 1)
        handles.append(axis.scatter(*chosen.t(), s=4, alpha=0.6, linewidths=0, color=color))
    labels_of = [
        printable(names[label] if names and 0 <= label < len(names) else str(label))
        for label in found
    ]
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": -(-len(found) // 25)}
    # With handles, because matplotlib otherwise omits labels that begin with an underscore.
    axis.legend(handles, labels_of, markerscale=4, frameon=False, **where)


def _colour(label: int, count: int) -> tuple[float, float, float, float]:
    """A colour for one of ``count`` labels, different from the others'."""
    colormaps = need("matplotlib", "drawing a latent map").colormaps
    if count <= 20:
        return colormaps["tab10" if count <= 10 else "tab20"](label)
    return colormaps["turbo"](label / (count - 1))


def draw_score_histogram(
    path: str | Path,
    normal: Tensor,
    anomalous: Tensor | None = None,
    *,
    threshold: float | None = None,
    caption: str = "",
) -> None:
    """Histograms of anomaly scores, in nats, with the threshold as a line."""
    kinds = [("normal", normal, "#1f4e8c")]
    if anomalous is not None:
        kinds.append(("anomalous", anomalous, "#c65f1c"))
    together = torch.cat([scores.float().cpu() for _, scores, _ in kinds])
    edges = torch.linspace(float(together.min()), float(together.quantile(0.995)), 61)
    with figure_for(path, (6.4, 3.6), 150, layout="constrained") as figure:
        axis = figure.subplots()
        for name, scores, colour in kinds:
            values = scores.float().cpu().numpy()
            axis.hist(values, edges.numpy(), density=True, alpha=0.6, color=colour, label=name)
        if threshold is not None:
            axis.axvline(threshold, color="#22262e", linewidth=1.2)
            axis.annotate(" threshold", (threshold, axis.get_ylim()[1]), va="top")
        axis.legend(frameon=False)
        axis.set_xlabel("score, nats per sample")
        axis.set_ylabel("density")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(printable(caption), loc="left", fontsize=9)
