"""The folder of a run: its configuration, its environment and its results.

::

    config.yaml           the whole configuration, defaults included
    data.json             names of classes, and which samples are held out (``run_data``)
    environment.json      versions, device, seed, git state, command line; a list, one per start
    metrics.jsonl         a row per log interval
    checkpoints/          folders named by step, and the pointers best and last
    set-aside-*           files that a resumed run could not use, kept unchanged
    reconstructions.png   originals above reconstructions
    samples.png           decoded draws from the prior
    curves.png            the metrics against the steps
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from vae_fast.extras import need
from vae_fast.files import Say, atomic_write, read_text, read_yaml, set_aside, warn
from vae_fast.import_paths import Trust
from vae_fast.system import info
from vae_fast.train import earlier
from vae_fast.train.config import GIVEN, TrainConfig, from_dict, to_dict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunFolder:
    """Paths and files of a run. ``create`` makes a new folder, ``RunFolder(path)`` opens an
    existing one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: TextIO | None = None
        if not self._marks():
            state = "does not exist" if not self.path.exists() else "holds no config.yaml"
            raise ValueError(
                f"{self.path} is not the folder of a run: it {state} (vae-fast train makes one)"
            )

    @staticmethod
    def check_free(config: TrainConfig) -> None:
        """Raise ValueError if ``config.out`` holds a run already."""
        if config.out is None:
            return
        path = Path(config.out)
        marks = [path / "config.yaml", path / "metrics.jsonl"]
        marks += (path / "checkpoints").glob("[0-9]*")  # a run made here would continue from it
        if any(mark.exists() for mark in marks):
            raise ValueError(
                f"{path} already holds a run: choose another --out, continue it with "
                f"`vae-fast resume {path}`, or remove it"
            )

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Create the folder ``config.out``, or a new one under runs/, and write the configuration
        there.

        Raises ValueError if it holds a run already, OSError if it can't be written.
        """
        yaml = need("yaml", "writing a run's config.yaml")
        cls.check_free(config)
        try:
            yaml.safe_dump(to_dict(config))
        except yaml.YAMLError as error:
            raise ValueError(
                f"the configuration can't be written to the run's config.yaml ({error.args[-1]!r}): "
                "it takes numbers, text, lists and dicts"
            ) from None
        path = Path(config.out) if config.out is not None else _new_folder(config)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            config.out = str(path)
            _write_yaml(path / "config.yaml", to_dict(config))
            (path / "metrics.jsonl").touch()
        except OSError as error:
            raise OSError(
                error.errno, f"the output folder can't be written ({error.strerror})", str(path)
            ) from None
        return cls(path)

    def discard(self) -> None:
        """Undo ``create`` if the run has no row of metrics and no checkpoint.

        Other files that the folder held before are kept, and so is the folder then.
        """
        if (self.path / "metrics.jsonl").stat().st_size or any(self.checkpoints.iterdir()):
            return
        self.unlock()
        files = "config.yaml data.json environment.json metrics.jsonl wandb_run mlflow_run"
        for name in files.split():
            (self.path / name).unlink(missing_ok=True)
        for event in (self.path / "tensorboard").glob("events.*"):
            event.unlink()
        for folder in (self.checkpoints, self.path / "tensorboard", self.path):
            with suppress(OSError):  # the folder is missing, or not empty
                folder.rmdir()

    def _marks(self) -> bool:
        return (self.path / "config.yaml").is_file()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def config(self, trust: Trust = False) -> TrainConfig:
        """Read config.yaml. Unknown keys raise ValueError.

        Args:
            trust: whether the file may name classes of any module, whose code then runs; or the
                import paths that it may name.
        """
        try:
            config = from_dict(read_yaml(self.path / "config.yaml"), trust=trust)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path / 'config.yaml'} is not a run's config: {error}"
            ) from None
        config.out = str(self.path)
        config.model_args = earlier.of_saved(str(config.model), config.model_args)
        return config

    def write_config(self, config: TrainConfig) -> None:
        """Write ``config`` to config.yaml, which the next resume reads."""
        _write_yaml(self.path / "config.yaml", to_dict(config))

    def lock(self) -> None:
        """Lock the run against training by other processes, until ``unlock`` or the process's end.

        Raises ValueError if another process has the lock. Does nothing on a file system without
        locks.
        """
        if fcntl is None or self._lock is not None:
            return
        path = self.path / ".lock"
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which is not followed: remove it")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            lock = open(os.open(path, flags, 0o666), "a")  # noqa: SIM115 (held)
        except OSError:
            return
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except (BlockingIOError, PermissionError):
            held = False
        except OSError:  # a file system without locks
            lock.close()
            return
        if not held:  # or the lock of a process that was ending and has removed it
            lock.close()
            raise ValueError(
                f"{self.path} is being trained by another process: wait until it has ended, or train "
                "in another folder"
            )
        self._lock = lock

    def unlock(self) -> None:
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def record_environment(self, config: TrainConfig, device: torch.device, runner: str) -> None:
        """Append this start's versions and device to environment.json; ``runner`` names the
        runner."""
        file = self.path / "environment.json"
        starts = self._starts(file) if file.exists() else []
        starts.append(
            {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "device": str(device),
                "runner": runner,
                "seed": config.seed,
                "git": _git_state(),
                **info(),
            }
        )
        with atomic_write(file) as beside:
            beside.write_text(json.dumps(starts, indent=2, default=str) + "\n")

    @staticmethod
    def _starts(file: Path) -> list[Any]:
        try:
            starts = json.loads(read_text(file))
        except (json.JSONDecodeError, RecursionError):
            starts = None
        if not isinstance(starts, list):
            raise ValueError(  # noqa: TRY004 (the file's fault)
                f"{file} must hold a list in JSON, an entry for each start, and does not: move it "
                "away, and a new one is begun"
            )
        return starts

    def append_metrics(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row and return it as written: a number that is not finite is null in JSON."""
        row = {key: _finite(value) for key, value in row.items()}
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(
                error.errno,
                f"a row of metrics can't be written ({error.strerror}); the checkpoints are as they "
                "were, to resume from once this is mended",
                str(path),
            ) from error
        return row

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without an incomplete last line that a killed process left.

        Raises ValueError for any other line that is not a row.
        """
        path, rows = self.path / "metrics.jsonl", []
        lines = read_text(path).split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if problem := _problem_of(line):
                if number == len(lines):  # without a line end it is a part of a row
                    break
                raise ValueError(
                    f"{path}, line {number}, {problem}: mend or remove that line, or copy the file "
                    "from where it is whole"
                )
            rows.append(json.loads(line))
        return rows

    def keep_metrics(self, count: int, *, to_be_written_again: bool = True, say: Say = warn) -> int:
        """Keep the first ``count`` rows; returns how many of them there were.

        Args:
            to_be_written_again: whether the run will write the other rows again. If it will not, or
                if rows are missing, the old file is set aside.
        """
        path, why = self.path / "metrics.jsonl", None
        rows = self.metrics() if path.exists() else []
        if len(rows) < count:
            why = f"has {len(rows)} rows of the {count} that there were at the last checkpoint"
        elif len(rows) > count and not to_be_written_again:
            why = "has rows of steps that are to be taken again"
        rows = rows[:count]
        with atomic_write(path) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if why is not None and path.exists():
                set_aside(path, why, say)
        return len(rows)

    def write_picture(self, name: str, draw: Callable[[Path], None]) -> Path:
        """Let ``draw`` write the picture ``name``, atomically; returns its path."""
        (self.path / name).parent.mkdir(exist_ok=True)
        with atomic_write(self.path / name) as beside:
            draw(beside)
        return self.path / name


def _problem_of(line: str) -> str | None:
    """What is wrong with a row of metrics.jsonl, or None."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return "is not JSON"
    if not isinstance(row, dict):
        return "is not a row, {name: value, ...}"
    if row.get("split") not in ("train", "val"):
        return f"has split {row.get('split')!r}; it must be train or val"
    numbers = (int, float, type(None))
    names = ("epoch", "step", "loss", "recon", "kl", "seconds", "samples_per_second")
    for name, value in row.items():
        if name in names and (not isinstance(value, numbers) or isinstance(value, bool)):
            return f"has {name} {value!r}; it must be a number"
    lacks = [name for name in names if name not in row]
    return f"lacks {lacks[0]}" if lacks else None


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _new_folder(config: TrainConfig) -> Path:
    """runs/MODEL-DATA, with the lowest number appended that makes the name new."""
    data = Path(config.data.removeprefix(GIVEN)).stem
    name = f"{config.model}-{data}".replace("/", "-").replace(":", "-")
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    yaml = need("yaml", "writing a run's config.yaml")
    with atomic_write(path) as beside:
        beside.write_text(yaml.safe_dump(values, sort_keys=False))


def _git_state() -> dict[str, Any] | None:
    """The commit of the working directory and whether files differ from it; None outside git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
