"""Results as files: JSON with every number, Markdown with the tables, and the page of the docs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("python", "torch", "numpy", "pythae", "vae_fast")


@dataclass
class Verdict:
    """A claim, whether the measurement confirms it (None: not measured), and the measurement."""

    claim: str
    holds: bool | None
    measured: str


@dataclass
class Result:
    """The result of an experiment.

    Attributes:
        name, title: of the experiment.
        how: a paragraph: data, model, training, evaluator.
        settings: the parameters, as numbers.
        columns, rows: the table, with formatted cells.
        values: all the measured values behind the table.
        verdicts: the claims.
        notes: further information, such as missing contenders.
    """

    name: str
    title: str
    how: str
    settings: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    verdicts: list[Verdict]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    commit: str | None = None
    date: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def stamp(self, seconds: float) -> Result:
        """Add where, when and with what it was measured."""
        found = machine.versions()
        self.versions = {name: found.get(name) for name in PACKAGES}
        self.machine = machine.describe(torch.device("cpu"))
        self.commit, self.date, self.seconds = machine.commit(), machine.today(), round(seconds, 1)
        return self


def save(result: Result, folder: Path = FOLDER) -> list[Path]:
    """Write NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    paths = [folder / f"{result.name}.json", folder / f"{result.name}.md"]
    paths[0].write_text(text + "\n")
    paths[1].write_text(markdown(result))
    return paths


def load(path: Path) -> Result:
    values = json.loads(path.read_text())
    values["verdicts"] = [Verdict(**verdict) for verdict in values["verdicts"]]
    return Result(**values)


def markdown(result: Result) -> str:
    """One section: how, the table, the claims, and where it was measured."""
    parts = [f"## {result.title}", "", result.how, "", table(result.columns, result.rows), ""]
    words = {True: "holds", False: "**does not hold**", None: "not measured"}
    rows = [[v.claim, v.measured, words[v.holds]] for v in result.verdicts]
    parts += [table(["claim", "measured", ""], rows), ""]
    parts += [f"{note}\n" for note in result.notes]
    known = [f"{name} {v}" for name, v in result.versions.items() if v is not None]
    place = result.machine
    where = (
        f"`python -m experiments {result.name}`, {result.date[:10]}, commit {result.commit}, "
        f"{result.seconds:.0f} s on {place.get('threads')} thread(s) of {place.get('cpu')}, "
        f"load average {place.get('load average at start')}; {', '.join(known)}."
    )
    parts += [where, ""]
    return "\n".join(parts)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *rows])
