"""A torch profiler trace of a few steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch

SKIPPED, WARMED_UP = 10, 3  # steps before the trace


def check_steps(steps: int, available: int) -> None:
    """Raise ValueError if a run of ``available`` steps is too short to trace ``steps`` of."""
    if steps < 0 or (steps > 0 and SKIPPED + WARMED_UP + steps > available):
        most = max(0, available - SKIPPED - WARMED_UP)
        raise ValueError(
            f"profile must be from 0 to {most} steps, got {steps}: the run has {available} steps, "
            f"and the first {SKIPPED + WARMED_UP} are not traced"
        )


@final
class StepProfiler:
    """Traces ``steps`` steps into profile.json (chrome://tracing, Perfetto) and profile.txt.

    ``step`` is called after every step; with 0 steps it does nothing.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self._folder = folder
        self._profiler: Any = None
        if steps > 0:
            self._profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    wait=SKIPPED, warmup=WARMED_UP, active=steps, repeat=1
                ),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> StepProfiler:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._profiler is not None:
            self._profiler.stop()

    def step(self) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: Any) -> None:
        profiler.export_chrome_trace(str(self._folder / "profile.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=25)
        (self._folder / "profile.txt").write_text(table + "\n")
