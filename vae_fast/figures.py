"""matplotlib figures: drawn by Agg in the default style, with text shown literally."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_fast.extras import need


@contextmanager
def figure_for(
    path: str | Path, size: tuple[float, float], dpi: int, *, layout: str | None = None
) -> Iterator[Any]:
    """Give an empty figure of ``size`` inches and write it to ``path`` as a PNG at the end of the
    block.

    The user's matplotlibrc and MPLBACKEND do not apply.
    """
    style = need("matplotlib.style", "drawing pictures")
    agg = need("matplotlib.backends.backend_agg", "drawing pictures")
    ours = {
        "font.family": "DejaVu Sans",  # part of matplotlib
        "text.parse_math": False,  # a file's name may have a $
        "text.usetex": False,
    }
    with style.context(["default", ours]):
        figure = need("matplotlib.figure", "drawing pictures").Figure(
            figsize=size, dpi=dpi, layout=layout
        )
        agg.FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, format="png")


def printable(text: str) -> str:
    """``text`` with unprintable characters replaced: line ends, control characters, invalid
    bytes."""
    return "".join(c if c.isprintable() else "?" for c in text)
