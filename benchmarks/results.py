"""Results: a JSON file of rows, what is derived from them, and the union of two runs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.case import OURS

FORMAT = 1
Row = dict[str, Any]
Results = dict[str, Any]


def timed(row: Row) -> dict[str, dict[str, Any]]:
    """The contenders of a row that have a time."""
    return {name: r for name, r in row["results"].items() if "median" in r}


def peers(row: Row) -> dict[str, dict[str, Any]]:
    """The contenders that are neither ours, in any variant, nor a yardstick."""
    return {
        name: r for name, r in timed(row).items() if not name.startswith(OURS) and "bytes" not in r
    }


def ratio(row: Row, peer: str, mine: str = OURS) -> float | None:
    """The ratio of a peer's median time to ours; None if either is missing."""
    entries = timed(row)
    if peer not in entries or mine not in entries:
        return None
    return entries[peer]["median"] / entries[mine]["median"]


def fastest(row: Row, prefix: str) -> str | None:
    """The fastest contender of a kind: "compile" stands for all its modes."""
    kind = {
        name: r
        for name, r in timed(row).items()
        if name == prefix or name.startswith((prefix + "-", prefix + " "))
    }
    # "eager" is the tutorial's spelling; "eager-logits" is another peer, not a mode of it.
    if prefix == "eager":
        kind = {name: r for name, r in kind.items() if not name.startswith("eager-")}
    return min(kind, key=lambda name: kind[name]["median"]) if kind else None


def gigabytes_per_second(row: Row, name: str = OURS) -> float | None:
    entry = timed(row).get(name)
    if entry is None or not row["bytes"]:
        return None
    return entry.get("bytes", row["bytes"]) / entry["median"] / 1e9


def share(row: Row, results: Results, name: str = OURS) -> float | None:
    """Part of the machine's measured ``torch.add(a, b, out=c)`` bandwidth, bytes counted alike."""
    speed, limit = gigabytes_per_second(row, name), results["bandwidth"].get("add(out=)")
    return None if speed is None or not limit else speed / limit


def save(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)  # a run that is killed here leaves the rows of before


def load(path: Path) -> Results:
    """Read a results file (or the results.json of a folder), or raise ValueError saying why not."""
    if path.is_dir():
        path = path / "results.json"
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: give the folder of a run's --out; "
            "benchmarks/results has this project's runs"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a results file of format {FORMAT}: "
            "give a JSON that `python -m benchmarks` wrote"
        )
    return results


def merge(mine: Results, other: Results) -> Results:
    """``mine``, with each peer's better time of the two runs; ours stays this run's.

    Raises ValueError where the runs are of different machines: their times don't compare.
    """
    for what in ("cpu", "gpu", "threads"):
        here, there = mine["machine"].get(what), other["machine"].get(what)
        if here != there:
            raise ValueError(
                f"the other run has {what} {there!r}, this one {here!r}: "
                "compare runs of one machine"
            )
    theirs = {row["key"]: row for row in other["rows"]}
    version = other["versions"]["torch"]
    merged = dict(mine, rows=[], merged_with=f"torch {version}, {other['date']}")
    for row in mine["rows"]:
        entries = dict(row["results"])
        for name, entry in peers(theirs.get(row["key"], {"results": {}})).items():
            if entry["median"] < entries.get(name, {}).get("median", math.inf):
                entries[name] = dict(entry, torch=version)
        merged["rows"].append(dict(row, results=entries))
    return merged
