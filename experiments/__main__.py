"""python -m experiments NAME: one experiment, or all of them, or the page of the docs."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from experiments import NAMES, gallery, page, results
from experiments.cells import Cells
from experiments.training import Clock


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all", "gallery", "page"])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; experiments/results if not given"
    )
    parser.add_argument("--only", action="append", help="of the gallery: this example alone")
    parser.add_argument(
        "--so-far", action="store_true",
        help="measure nothing: the table of what an interrupted run has left",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick and options.out is None:
        parser.error("--quick measures nothing worth keeping: give --out a folder of its own")
    if options.name == "page":
        print(page.write(options.out or results.FOLDER))
        return 0
    if options.name == "gallery":
        return gallery.main(options.quick, options.out, options.only)
    held = [
        run(name, options.quick, options.out or results.FOLDER, options.so_far)
        for name in (NAMES if options.name == "all" else [options.name])
    ]
    return 0 if all(held) else 1


def run(name: str, quick: bool, out: Path, so_far: bool = False) -> bool:
    """One experiment; returns whether all its claims that were measured hold."""
    module = importlib.import_module(f"experiments.{name}")
    settings = module.QUICK if quick else module.SETTINGS
    cells = Cells(out / f"{name}.partial", settings, measuring=not so_far)
    clock = Clock(cells)
    result = module.run(settings, clock)
    result.stamp(cells.seconds if so_far else clock.seconds())
    paths = results.save(result, out)
    if not so_far:
        cells.done()
    print(results.markdown(result))
    print(*paths, sep="\n")
    return all(verdict.holds is not False for verdict in result.verdicts)


if __name__ == "__main__":
    sys.exit(main())
