"""Display of a run's progress: a bar on a terminal, otherwise a line per log interval."""

from __future__ import annotations

import sys
from typing import Any, final

from vae_fast.data.logged_progress import LoggedProgress
from vae_fast.extras import need


@final
class MetricsDisplay:
    """Shows rows of metrics and the number of steps. ``say`` prints without breaking the bar.

    Args:
        done, total: steps.
        visible: False shows and says nothing (the other ranks of a distributed run).
    """

    def __init__(self, done: int, total: int, *, visible: bool = True) -> None:
        self._bar = None
        self._visible = visible
        self._total = total
        if visible and sys.stderr.isatty():
            tqdm = need("tqdm", "the progress bar").tqdm
            self._bar = tqdm(
                total=total, initial=done, unit=" steps", dynamic_ncols=True, leave=False
            )

    def show(self, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        if not self._visible:
            return
        terms = _terms(row)
        speed = f"{row['samples_per_second']:,.0f} samples/s"
        if self._bar is None:
            print(
                f"epoch {row['epoch']:3d}  step {row['step']:6d}/{self._total}  "
                f"{row['split']:5s}  {terms} nats  {speed}",
                flush=True,
            )
            return
        self._bar.n = row["step"]
        if row["split"] == "val":
            self.say(f"epoch {row['epoch']:3d}  val  {terms} nats")
        else:
            self._bar.set_postfix_str(f"{terms} nats, {speed}", refresh=False)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self._visible:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def __enter__(self) -> MetricsDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@final
class ProgressBar:
    """A bar on a terminal, elsewhere a logged line every ten seconds: ``show(done, total)`` moves
    it.
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None
        self._lines: LoggedProgress | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def show(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            self._lines = self._lines or LoggedProgress(self._what, total, self._unit)
            self._lines.show(done)
            return
        if self._bar is None:
            tqdm = need("tqdm", "the progress bar").tqdm
            self._bar = tqdm(
                total=total, desc=self._what, unit=f" {self._unit}", dynamic_ncols=True, leave=False
            )
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _terms(row: dict[str, Any]) -> str:
    if row["loss"] is None:
        return "loss not finite"
    beta = row.get("beta", 1.0)
    weight = "" if beta == 1.0 else f"{beta:.3g} * "
    text = f"loss {row['loss']:.2f} = recon {row['recon']:.2f} + {weight}KL {row['kl']:.2f}"
    return text + (f", {row['skipped']} steps skipped" if row.get("skipped") else "")
