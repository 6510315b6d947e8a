"""Write docs/experiments.md from the existing results."""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments import NAMES, results

PAGE = Path(__file__).parents[1] / "docs" / "experiments.md"
HEAD = """\
# Experiments

Claims about the models, each measured by one command: `python -m experiments NAME` from a clone,
with the NAME under each table, or `all`. A command prints its table, writes
`experiments/results/NAME.json` (every number) and `NAME.md`, and exits with 1 if a claim does not
hold. `--quick --out FOLDER` runs one at a tiny size, as a test. `python -m experiments page`
generates this page from the results.

[pythae](https://github.com/clementchadebec/benchmark_VAE) is optional (`pip install pythae==0.1.2`):
if it is not installed, its rows are left out and the results say so. It trains the same networks
from the same initial weights, and our evaluator evaluates both.

"Holds" and "does not hold" are decided by rules written before the measurement
(`experiments/statistics.py`): *within the spread* is a difference of at most two standard errors;
*by more than the spread* is one above both standard deviations and above two standard errors.
Binarised and grey images are never compared with each other: each section says which it used.
"""


def write(folder: Path = results.FOLDER, page: Path = PAGE) -> Path:
    """Write the page; experiments without results are listed as not measured."""
    parts = [HEAD]
    for name in NAMES:
        path = folder / f"{name}.json"
        if path.is_file():
            parts.append(results.markdown(results.load(path)))
        else:
            title = importlib.import_module(f"experiments.{name}").TITLE
            parts.append(f"## {title}\n\nNot measured yet: `python -m experiments {name}`.\n")
    page.write_text("\n".join(parts))
    return page
