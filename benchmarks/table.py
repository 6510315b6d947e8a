"""Results as text: one table of rows, one of requirements; plain or Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from benchmarks.case import OURS
from benchmarks.requirements import Requirement, Verdict
from benchmarks.results import Results, Row, gigabytes_per_second, peers, ratio, share, timed

PEERS = (
    "tutorial", "eager", "eager-logits", "in memory", "compile", "compile-max-autotune",
    "compile-cudagraphs", "jax", "pythae",
)  # fmt: skip


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def align(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """A table; the first row is its head. Text columns left, numbers right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numeric = [
        all(c[:1].isdigit() or c in ("", "-") for c in column)
        for column in zip(*rows[1:], strict=True)
    ] or [False] * len(widths)

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if right else c.ljust(w)
            for c, w, right in zip(cells, widths, numeric, strict=True)
        ]
        return "| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()

    rule = [
        ("-" * (w - 1) + ":") if right else "-" * w
        for w, right in zip(widths, numeric, strict=True)
    ]
    if markdown:
        lines = [line(rows[0]), line(rule)]
    else:
        lines = [line(rows[0]), "  ".join("-" * w for w in widths)]
    return "\n".join([*lines, *(line(row) for row in rows[1:])])


def columns(results: Results) -> list[str]:
    """The peers that any row has, in a fixed order."""
    seen = {name for row in results["rows"] for name in peers(row)}
    return [name for name in PEERS if name in seen] + sorted(seen - set(PEERS))


def cells(row: Row, results: Results, names: Iterable[str], mine: str) -> list[str]:
    entry = timed(row).get(mine)
    what = [row["op"], row["pass"], row["shape"], row["dtype"]]
    if row["target"]:
        what[3] += f", {row['target']}"
    if entry is None:
        missing = row["results"].get(mine, {})
        return [*what, next(iter(missing), "absent"), "", *("" for _ in names), "", "", "", ""]
    spread = f"{seconds(entry['low'])} to {seconds(entry['high'])}"
    ratios = []
    for name in names:
        value, found = ratio(row, name, mine), row["results"].get(name, {})
        ratios.append(
            f"{value:.3g}" if value is not None else "wrong" if "refused" in found else "-"
        )
    speed, part = gigabytes_per_second(row, mine), share(row, results, mine)
    if speed is None:
        rate = ["", ""]
    else:
        # A row whose inputs stay in the cache says nothing about memory bandwidth.
        rate = [f"{speed:.3g}", "cached" if row["in_cache"] else f"{100 * part:.0f}%"]
    if row.get("samples"):
        rate = [f"{row['samples'] / entry['median']:,.0f} samples/s", ""]
    peaks = timed(row)
    memory = peaks[mine].get("peak_bytes")
    eager = peaks.get("eager", {}).get("peak_bytes")
    return [
        *what, seconds(entry["median"]), spread, *ratios, *rate,
        "" if memory is None else size(memory), "" if eager is None else size(eager),
    ]  # fmt: skip


def rows_table(results: Results, markdown: bool = False) -> str:
    """Every row: our time and its quartiles, and how many times longer each peer takes."""
    names = columns(results)
    head = [
        "op", "pass", "shape", "dtype", "ours", "quartiles", *(f"x {name}" for name in names),
        "GB/s", "of add", "peak", "eager's peak",
    ]  # fmt: skip
    body = []
    for row in results["rows"]:
        variants = [n for n in timed(row) if n.startswith(OURS)] or [OURS]
        for mine in variants:
            line = cells(row, results, names, mine)
            if mine != OURS:
                line[0] += mine[len(OURS) :]
            body.append(line)
    return align([head, *body], markdown)


def rows_csv(results: Results) -> str:
    """Every contender of every row as CSV: seconds a call, quartiles, and bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = ("median", "low", "high", "rounds", "calls", "peak_bytes")
    names = ("op", "pass", "shape", "dtype", "target")
    writer.writerow([*names, "contender", "seconds", *fields[1:]])
    for row in results["rows"]:
        for name, entry in timed(row).items():
            writer.writerow([*map(row.get, names), name, *map(entry.get, fields)])
    return text.getvalue()


def _number(requirement: Requirement, value: float) -> str:
    if requirement.measure == "rate":
        return f"{value:.3g} /s"
    if requirement.measure == "share":
        return f"{100 * value:.0f}% of {requirement.peer}"
    if requirement.measure == "rate over":
        return f"{value:.3g} x"
    if requirement.measure == "GB under 1":
        return f"{1 / value:.3g} GB"
    if requirement.measure == "memory":
        return f"1/{value:.3g} of {requirement.peer}'s peak"
    return f"{value:.3g} x {requirement.peer}"


def requirements_table(verdicts: Iterable[Verdict], markdown: bool = False) -> str:
    """What is required beside what was measured."""
    body = []
    for requirement, measured, why in verdicts:
        found = why if measured is None else _number(requirement, measured)
        met = "" if measured is None else "yes" if measured >= requirement.least else "NO"
        body.append([requirement.what, _number(requirement, requirement.least), found, met])
    if not body:
        return ""
    return align([["what", "at least", "measured", "met"], *body], markdown)


def left_out(results: Results) -> list[str]:
    """The missing contenders, a line for each reason."""
    lines: dict[str, None] = {}
    for row in results["rows"]:
        for name, entry in row["results"].items():
            if "absent" in entry:
                lines[f"{name}: absent, {entry['absent']}"] = None
            elif "refused" in entry:
                lines[f"{name} at {row['key']}: refused, {entry['refused']}"] = None
            elif "failed" in entry:
                lines[f"{name} at {row['key']}: failed, {entry['failed']}"] = None
    lines.update({f"{key}: {why}": None for key, why in results.get("missing", {}).items()})
    return list(lines)


def heading(results: Results) -> str:
    """Machine, versions, commit and date in two lines."""
    machine, versions = results["machine"], results["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    if not machine.get("gpu"):
        where += f", {machine['vae_fast cpu capability']}"
    took_part = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    speed = ", ".join(f"{name} {v:.1f} GB/s" for name, v in results["bandwidth"].items())
    text = f"{where}; {speed}\n{took_part}; commit {results['commit']}; {results['date']}"
    if "merged_with" in results:
        text += f"; merged with {results['merged_with']}"
    return text + busy(machine)


def busy(machine: dict) -> str:
    """A warning if other processes were using the machine when the run started."""
    load, cores = machine.get("load average at start"), machine.get("cores")
    if not load or not cores or load < 0.5 * cores:
        return ""
    return (
        f"\nOTHERS WERE USING THIS MACHINE (load average {load} on {cores} cores at the start): "
        "these times say little"
    )
