"""Measured values in a file, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine


class Cells:
    """Values by key, each written to ``path`` as soon as it is measured.

    A file of other settings or of another commit is refused: the rows of a table are of one code.

    Args:
        path: the file; None keeps nothing.
        settings: the experiment's.
        measuring: whether ``of`` measures what is missing; if not, it gives None.
    """

    def __init__(
        self,
        path: Path | None = None,
        settings: dict[str, Any] | None = None,
        *,
        measuring: bool = True,
    ) -> None:
        self.path, self.measuring, self.seconds = path, measuring, 0.0
        self.of_what = json.loads(json.dumps({"settings": settings, "commit": machine.commit()}))
        self.values: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        kept = json.loads(path.read_text())
        for name, now in self.of_what.items():
            if kept[name] != now:
                raise ValueError(
                    f"{path} was begun with {name} {kept[name]}, and this run has {now}: finish it "
                    "with the former, or remove the file"
                )
        self.values, self.seconds = kept["values"], kept["seconds"]

    def of(self, key: str, measure: Callable[[], Any], seconds: Callable[[], float]) -> Any:
        """The value of ``key``, measured unless it is kept; ``seconds`` is the time spent so far."""
        if key in self.values or not self.measuring:
            return self.values.get(key)
        self.values[key] = measure()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(".new")
            content = {**self.of_what, "seconds": seconds(), "values": self.values}
            new.write_text(json.dumps(content, indent=1))
            os.replace(new, self.path)
        return self.values[key]

    def done(self) -> None:
        """Remove the file, when the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def gaps(counts: dict[str, int], wanted: int) -> list[str]:
    """Notes on rows with fewer seeds than ``wanted``; ``counts`` has each row's number."""
    fewer = [f"{name} ({count})" for name, count in counts.items() if 0 < count < wanted]
    missing = [name for name, count in counts.items() if count == 0]
    notes = [f"Fewer seeds than said above: {', '.join(fewer)}."] if fewer else []
    return notes + (
        [f"Not measured yet, for the run was stopped: {'; '.join(missing)}."] if missing else []
    )
