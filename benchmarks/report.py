"""The report: results as Markdown, a roofline and a picture of ratios against size.

``python -m benchmarks.report RESULTS.json [OUT]`` draws them from a file that exists.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import requirements, table
from benchmarks.case import OURS
from benchmarks.results import Results, Row, gigabytes_per_second, load, peers, ratio, timed

HOW = """\
- **ours**: the median time of one call. Contenders take turns, on the same inputs. Each result was
  compared with float64's before it was timed.
- **pass**: the *value*, the *gradient* with respect to every input, or *both* in one call.
- **quartiles**: half of the readings lie between these two times.
- **x NAME**: the peer's time over ours. Above 1 we are faster. *eager* is plain PyTorch as the usual
  tutorial writes it, *eager-logits* PyTorch's own loss with logits, *compile* `torch.compile`.
- **buffer kept**: a call without autograd that writes its gradient into a tensor which the caller keeps.
- **drop-in**: a script of plain PyTorch that imports its names from `vae_fast`.
- **GB/s** counts the least bytes that the row's result takes. **of add** is its share of what
  `torch.add(a, b, out=c)` moved in this run. It can be above 100%: add reads the memory that it
  overwrites, and kernels that write past the caches don't. *cached* rows are small enough that their
  inputs stay in the cache.
- **peak**: what one call allocates beyond its inputs, its results included.
"""

GOALS = """\
# Required and measured

The project's own goals, for its developers. Each row is judged by its worst size.
"""

MISSING = "pictures need matplotlib: pip install 'vae_fast[train]'"

# By name, so that a peer looks the same in both pictures and in every run. (Okabe and Ito's
# colours, which the colour-blind can tell apart.)
COLOURS = {
    OURS: "#000000",
    "eager": "#d55e00",
    "eager-logits": "#e69f00",
    "compile": "#0072b2",
    "compile-max-autotune": "#56b4e9",
    "compile-cudagraphs": "#56b4e9",
    "jax": "#009e73",
}
OTHER = "#cc79a7"
# What legends call the contenders, and titles the passes.
WORDS = {
    OURS: "vae_fast",
    "eager": "plain PyTorch",
    "eager-logits": "PyTorch's loss of logits",
    "compile": "torch.compile",
    "compile-max-autotune": "torch.compile, max-autotune",
    "jax": "JAX",
}
PASS_WORDS = {"both": "value and gradient"}


def write(results: Results, folder: Path) -> list[Path]:
    """Write report.md, results.csv, pictures of the rows that can be drawn, and for a run of
    must-show requirements.md. Returns the paths.

    Without matplotlib there are no pictures, and the report says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    try:
        pictures = draw(results, folder)
        word = ""
    except ImportError:
        word = MISSING
    report = folder / "report.md"
    report.write_text(markdown(results, pictures, word))
    numbers = folder / "results.csv"
    numbers.write_text(table.rows_csv(results))
    written = [report, numbers, *pictures]
    if text := goals(results):
        written.append(folder / "requirements.md")
        written[-1].write_text(text)
    return written


def markdown(results: Results, pictures: list[Path], word: str = "") -> str:
    """The whole report as Markdown."""
    parts = ["# Benchmarks", "", *(f"{line}  " for line in table.heading(results).splitlines()), ""]
    parts += [HOW, ""]
    for picture in pictures:
        parts += [f"![{picture.stem}]({picture.name})", ""]
    if word:
        parts += [word, ""]
    for (op, pass_), rows in by_op(results).items():
        part = dict(results, rows=rows)
        parts += [f"## {op}, {pass_}", "", table.rows_table(part, markdown=True), ""]
    absent = table.left_out(results)
    if absent:
        parts += ["## Left out", "", *(f"- {line}" for line in absent), ""]
    return "\n".join(parts)


def goals(results: Results) -> str:
    """What a run of must-show required and measured, as Markdown; "" of any other run."""
    verdicts = [
        v
        for group in requirements.GROUPS.values()
        for v in requirements.judge(group, results)
        if v.measured is not None and results["suite"] == "must-show"
    ]
    return f"{GOALS}\n{table.requirements_table(verdicts, True)}\n" if verdicts else ""


def by_op(results: Results) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results["rows"]:
        groups[row["op"], row["pass"]].append(row)
    return groups


# --- pictures ------------------------------------------------------------------------------------


def draw(results: Results, folder: Path) -> list[Path]:
    """The two pictures of the rows that move bytes; none where there are none."""
    import matplotlib

    matplotlib.use("Agg")
    rows = [row for row in results["rows"] if row["bytes"] and OURS in timed(row)]
    if not rows:
        return []
    sizes: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in rows:
        sizes[row["op"], row["pass"]].add(row["elements"])
    if all(len(found) == 1 for found in sizes.values()):  # nothing to draw against the size
        return [dots(rows, folder)]
    return [roofline(rows, results, folder), ratios(rows, results, folder)]


def panels(rows: list[Row], across: str) -> tuple[Any, dict[tuple[str, str], Any], Any]:
    """A figure with a panel for each op and pass that rows have, up to three in a line.

    ``across``: the label of the x axis.
    """
    from matplotlib import pyplot

    found = list(dict.fromkeys((row["op"], row["pass"]) for row in rows))
    columns = min(3, len(found))
    down = -(-len(found) // columns)
    figure, axes = pyplot.subplots(
        down, columns, sharex=True, sharey=True, squeeze=False,
        figsize=(max(6.6, 0.8 + 3.6 * columns), 1.4 + 2.6 * down), layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    grid = dict(zip(found, axes.flat, strict=False))
    for i, ((op, pass_), axis) in enumerate(grid.items()):
        axis.set_title(f"{op}, {PASS_WORDS.get(pass_, pass_)}", fontsize=9)
        axis.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        is_lowest = i + columns >= len(found)
        axis.tick_params(labelbottom=is_lowest, labelsize=8)
        axis.set_xlabel(across if is_lowest else "", fontsize=8)
    return figure, grid, axes


Point = tuple[float, float, bool]  # x, y, and whether the row's inputs stay in the cache


def lines(
    rows: list[Row], value: Callable[[Row, str], tuple[float, float]]
) -> dict[str, list[Point]]:
    """Points by contender, in order of x, of float32 rows; ``value(row, name)`` gives x and y.

    The lines show float32 alone; the table has the other dtypes.
    """
    found: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row["dtype"] == "float32" and not row["target"]:
            for name in (OURS, *peers(row)):
                if name in timed(row):
                    found[name].append((*value(row, name), row["in_cache"]))
    return {name: sorted(points) for name, points in found.items()}


def plot(axis: Any, points: list[Point], name: str) -> None:
    mine, colour = name == OURS, COLOURS.get(name, OTHER)
    x, y, cached = zip(*points, strict=True)
    order, width, area = (3, 2, 26) if mine else (2, 1.2, 14)
    axis.plot(x, y, color=colour, label=WORDS.get(name, name), linewidth=width, zorder=order)
    faces = ["white" if c else colour for c in cached]
    axis.scatter(x, y, s=area, c=faces, edgecolors=colour, linewidths=1, zorder=order + 1)


def legend(figure: Any, axes: Any) -> None:
    handles = {}
    for axis in axes.flat:
        handles.update({text: h for h, text in zip(*axis.get_legend_handles_labels(), strict=True)})
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            fontsize=8,
            ncols=max(1, min(7, int(figure.get_figwidth() / 1.9))),
        )


def roofline(rows: list[Row], results: Results, folder: Path) -> Path:
    """GB/s against the bytes a call moves, under the roof of the machine's bandwidth."""
    from matplotlib import pyplot

    figure, grid, axes = panels(rows, "bytes that a call has to move")
    roof = results["bandwidth"].get("add(out=)")
    for (op, pass_), axis in grid.items():
        here = [r for r in rows if (r["op"], r["pass"]) == (op, pass_)]
        points = lines(here, lambda row, name: (row["bytes"], gigabytes_per_second(row, name)))
        for name, xy in points.items():
            plot(axis, xy, name)
        if roof:
            axis.axhline(
                roof, color="#888888", linestyle="--", linewidth=1, label="torch.add(out=)"
            )
        axis.set(xscale="log", yscale="log")
    figure.supylabel("GB/s", fontsize=8)
    legend(figure, axes)
    figure.suptitle(
        "Bandwidth, float32 (hollow: the inputs stay in the cache)", fontsize=10, x=0.01, ha="left"
    )
    path = folder / "roofline.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def ratios(rows: list[Row], results: Results, folder: Path) -> Path:
    """How many times as long each peer takes, against the number of elements."""
    from matplotlib import pyplot, ticker

    figure, grid, axes = panels(rows, "elements")
    for (op, pass_), axis in grid.items():
        here = [r for r in rows if (r["op"], r["pass"]) == (op, pass_)]
        points = lines(here, lambda row, name: (row["elements"], ratio(row, name)))
        for name, xy in points.items():
            if name != OURS:
                plot(axis, xy, name)
        axis.axhline(1, color=COLOURS[OURS], linewidth=1.5, label=WORDS[OURS])
        axis.set(xscale="log", yscale="log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    figure.supylabel("times as long as vae_fast", fontsize=8)
    legend(figure, axes)
    figure.suptitle(
        "How many times as long others take, float32 (hollow: inputs in the cache)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    path = folder / "ratios.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def dots(rows: list[Row], folder: Path) -> Path:
    """How many times as long each peer takes: a line of dots for each op, of rows of one size."""
    from matplotlib import pyplot, ticker

    shown = [row for row in rows if row["dtype"] == "float32" and not row["target"]]
    names = [
        f"{row['op']}\n{PASS_WORDS.get(row['pass'], row['pass'])}, {row['shape']}" for row in shown
    ]
    height = 1.3 + 0.45 * max(1, len(shown))
    figure, axes = pyplot.subplots(figsize=(8, height), squeeze=False, layout="constrained")
    axis = axes[0, 0]
    for name in dict.fromkeys(name for row in shown for name in peers(row)):
        at = [(ratio(row, name), i) for i, row in enumerate(shown) if name in timed(row)]
        if at:
            x, y = zip(*at, strict=True)
            colour = COLOURS.get(name, OTHER)
            axis.scatter(x, y, s=36, color=colour, label=WORDS.get(name, name), zorder=3)
    axis.axvline(1, color=COLOURS[OURS], linewidth=1.5, label=WORDS[OURS])
    axis.set_yticks(range(len(shown)), names, fontsize=8)
    axis.set(xscale="log", ylim=(len(shown) - 0.5, -0.5))
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("times as long as vae_fast (right of 1: vae_fast is faster)", fontsize=8)
    legend(figure, axes)
    path = folder / "ratios.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def main(arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("python -m benchmarks.report RESULTS.json [OUT]", file=sys.stderr)
        return 2
    source = Path(arguments[0])
    try:
        results = load(source)
    except ValueError as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    folder = Path(arguments[1]) if len(arguments) == 2 else source.parent
    for path in write(results, folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
