"""matplotlib's figures as we draw them: by Agg, in its default style, with text that is only text."""

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
    """Give an empty figure of ``size`` inches, which is written to ``path`` as a PNG at the end.

    What the user's matplotlibrc and MPLBACKEND say is for their own plots.
    """
    style = need("matplotlib.style", "drawing pictures")
    agg = need("matplotlib.backends.backend_agg", "drawing pictures")
    ours = {
        "font.family": "DejaVu Sans",  # which comes with matplotlib
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
    """``text`` without what no font has: line ends, other controls, bytes that are no text."""
    return "".join(c if c.isprintable() else "?" for c in text)
