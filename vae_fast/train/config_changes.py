"""What may change when a run resumes, and messages about each change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, cast

from vae_fast.train.config import TrainConfig, check_known, field_types, to_dict
from vae_fast.train.manifest import CheckpointError

# A checkpoint's weights, optimizer state and place in the data depend on these.
FIXED = ("model", "model_args", "standardize", "seed", "batch_size", "labels", "optimizer.name",
         "optimizer.groups", "optimizer.phases")  # fmt: skip
_OF_THE_START = ("init_from", "out")


def fields() -> dict[str, Any]:
    """The types of all values that may change, by names such as lr and optimizer.clip_norm."""
    found: dict[str, Any] = {}
    for name, kind in field_types(TrainConfig).items():
        parts = field_types(cast(Any, kind)) if dataclasses.is_dataclass(kind) else {}
        found |= {f"{name}.{part}": of_part for part, of_part in parts.items()} or {name: kind}
    return {name: kind for name, kind in found.items() if not _is_fixed(name)}


def apply(config: TrainConfig, changes: Mapping[str, Any], run: str) -> list[str]:
    """Change ``config``; returns a line for each change, with the old value.

    Args:
        changes: new values by name, such as {"lr": 1e-4, "optimizer.clip_norm": 1.0}.

    Raises ValueError for a name that can't change.
    """
    lines = []
    for name, value in changes.items():
        if _is_fixed(name):
            raise ValueError(f"{name} can't change when a run goes on: {_instead(run)}")
        check_known("what to change", name, fields())
        *heading, field = name.split(".")
        part = getattr(config, heading[0]) if heading else config
        before = getattr(part, field)
        setattr(part, field, value)
        if before != value:
            lines.append(f"{name}: {value} from here on, as you asked; it was {before}")
    return lines


def compare(
    saved: Mapping[str, Any] | None, config: TrainConfig, asked: Mapping[str, Any], run: str
) -> list[str]:
    """A line for each difference between ``config`` and the configuration of a checkpoint.

    Args:
        saved: the checkpoint's configuration as ``plain`` gives it; None in old checkpoints, which
            have none.
        asked: the changes that ``apply`` has already reported.

    Raises CheckpointError if they differ in something that cannot change.
    """
    lines = []
    before, now = _flat(saved or {}), _flat(plain(config))
    for name, value in now.items():
        if name in _OF_THE_START or name in asked or before.get(name, value) == value:
            continue
        if _is_fixed(name):
            raise CheckpointError(
                f"config.yaml has {name}: {value}, and the checkpoint is of {before[name]}, which "
                f"can't change when a run goes on: put it back. {_instead(run)}"
            )
        lines.append(f"{name}: {value} from config.yaml; the checkpoint is from {before[name]}")
    return lines


def changed_arguments(saved: Mapping[str, Any] | None, config: TrainConfig) -> set[str]:
    """The names in optimizer.args whose values differ from the checkpoint's."""
    if not saved:
        return set()
    before, now = saved["optimizer"]["args"], plain(config)["optimizer"]["args"]
    return {name for name in {**before, **now} if before.get(name) != now.get(name)}


def plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as a checkpoint holds it, after a round trip through JSON."""
    return json.loads(json.dumps(to_dict(config), default=str))


def check_plain(saved: Any) -> None:
    """Raise CheckpointError unless this can be the ``plain`` form of a configuration."""
    optimizer = saved.get("optimizer") if isinstance(saved, dict) else None
    if not (isinstance(optimizer, dict) and isinstance(optimizer.get("args"), dict)):
        raise CheckpointError("config is not valid")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    parts = {
        name for name, kind in field_types(TrainConfig).items() if dataclasses.is_dataclass(kind)
    }
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = name in parts and isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    return flat


def _is_fixed(name: str) -> bool:
    return name in (*FIXED, *_OF_THE_START) or name.split(".")[0] in FIXED


def _instead(run: str) -> str:
    return (
        "to train something else from these weights, start a new run with "
        f"`vae-fast train --init-from {run}`"
    )
