"""How one run differs from another: every row that both have, before and now.

``python -m benchmarks.change BEFORE.json NOW.json`` prints it for two files.

A change counts as more than noise where the quartiles of the two runs don't overlap and the medians
are more than 5% apart. On different machines times don't compare, so ratios to peers are compared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.case import OURS
from benchmarks.results import Results, Row, fastest, load, peers, ratio, timed

SMALLEST = 0.05


def is_same_machine(before: Results, now: Results) -> bool:
    return all(
        before["machine"].get(what) == now["machine"].get(what)
        for what in ("cpu", "gpu", "threads")
    )


def verdict(before: dict[str, Any], now: dict[str, Any]) -> str:
    """ "faster", "slower" or "noise", of two timings with quartiles."""
    change = now["median"] / before["median"] - 1
    overlap = now["low"] <= before["high"] and before["low"] <= now["high"]
    if overlap or abs(change) < SMALLEST:
        return "noise"
    return "slower" if change > 0 else "faster"


def _ratios(before: Row, now: Row, peer: str) -> list[str]:
    """How many times our time the peer takes in both runs; empty where one run lacks it."""
    found = [fastest(row, peer) for row in (before, now)]
    values = [name and ratio(row, name) for row, name in zip((before, now), found, strict=True)]
    return [f"{value:.3g}" if value else "" for value in values]


def changes(before: Results, now: Results) -> str:
    """A table of the rows that both runs have, as text.

    Raises ValueError where the runs have no row in common.
    """
    earlier = {row["key"]: row for row in before["rows"]}
    pairs = [
        (earlier[row["key"]], row)
        for row in now["rows"]
        if OURS in timed(row) and OURS in timed(earlier.get(row["key"], {"results": {}}))
    ]
    if not pairs:
        raise ValueError("the two runs have no row in common: compare runs of the same suite")
    same = is_same_machine(before, now)
    shown = [
        peer
        for peer in ("eager", "compile", "jax")
        if any(
            name == peer or name.startswith(peer + "-") for _, row in pairs for name in peers(row)
        )
    ]
    is_busy = any(table.busy(run["machine"]) for run in (before, now))
    head = ["row", *(["before", "now", "change"] if same else [])]
    head += ["verdict"] if same and not is_busy else []
    for peer in shown:
        head += [f"x {peer} before", "now"]
    body = []
    for was, row in pairs:
        old, new = timed(was)[OURS], timed(row)[OURS]
        line = [row["key"]]
        if same:
            percent = 100 * (new["median"] / old["median"] - 1)
            line += [table.seconds(old["median"]), table.seconds(new["median"]), f"{percent:+.0f}%"]
            line += [] if is_busy else [verdict(old, new)]
        for peer in shown:
            line += _ratios(was, row, peer)
        body.append(line)
    said = f"Compared with the run of {before['date']} (commit {before['commit']})"
    if not same:
        said += ", on another machine: only ratios compare"
    elif is_busy:
        said += "; others were using the machine in one of the two, so trust ratios, not times"
    if len(pairs) < len(now["rows"]):
        said += f"; {len(pairs)} of {len(now['rows'])} rows are in both"
    return f"{said}:\n\n{table.align([head, *body], markdown=False)}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("python -m benchmarks.change BEFORE.json NOW.json", file=sys.stderr)
        return 2
    try:
        print(changes(*(load(Path(name)) for name in arguments)))
    except ValueError as error:
        print(f"benchmarks.change: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
