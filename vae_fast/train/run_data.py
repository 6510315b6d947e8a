"""The data of a run: loaded by its configuration, and split as at its start.

data.json in the run's folder holds the class names and the held-out samples, so that files added
later do not move samples between training and validation.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast import data as datasets
from vae_fast.data import DataOptions
from vae_fast.data.catalog import canonical
from vae_fast.data.ranges import LabelRange
from vae_fast.files import atomic_write
from vae_fast.models.conditions import Labels
from vae_fast.models.interface import (
    Classifies,
    Model,
    conditioning_of,
    likelihood_of,
    target_of,
    uses_labels,
)
from vae_fast.train.config import TrainConfig, data_of

RECORD = "data.json"


def load_split(config: TrainConfig, split: str) -> Any:
    """Training ("train") or validation ("val") data of the run. Values are not checked."""
    return load_splits(config, split)[0]


def load_splits(config: TrainConfig, *splits: str) -> list[Any]:
    """As ``load_split``, of several splits. A file or folder is read once for all of them."""
    kept, options = _record(config).get("held_out"), config.data_options
    source: Any = data_of(config)
    if canonical(source) is None:
        source = datasets.as_data(source, bounded=False, options=options)
        options = replace(options, size=None, mode=None)  # of files, which are read
    return [
        in_column_order(
            config,
            datasets.load(source, split=split, bounded=False, options=options, kept=kept),
        )
        for split in splits
    ]


def load_other(config: TrainConfig, source: str, options: DataOptions | None = None) -> Any:
    """Other data for the run's model. Image files are read with ``options``, or with the run's
    options."""
    if options is None and datasets.holds_images(source):
        options = config.data_options
    return in_column_order(config, datasets.as_data(source, bounded=False, options=options))


def in_column_order(config: TrainConfig, data: Any) -> Any:
    """A table with its columns in the order of the run's table, by their names.

    Raises:
        ValueError: the table lacks a column of the run's, or has others.
    """
    wanted, own = _record(config).get("columns"), getattr(data, "columns", None)
    if wanted is None or own is None or list(own) == wanted:
        return data
    lacking = [name for name in wanted if name not in own]
    others = [name for name in own if name not in wanted]
    if lacking or others:
        said = [f"{what} {', '.join(names[:5])}" for what, names in
                (("lacks", lacking), ("has also", others)) if names]  # fmt: skip
        raise ValueError(
            f"{data.name} {' and '.join(said)}: the run's model was trained on the columns "
            f"{', '.join(wanted[:5])}{', ...' if len(wanted) > 5 else ''}"
        )
    order = [own.index(name) for name in wanted]
    return replace(data, images=data.images[:, order], columns=tuple(wanted))


def match_class_order(labels: Tensor | None, own: Any, classes: Any) -> Tensor | None:
    """Convert labels that index the class names ``own`` to labels that index ``classes``.

    Raises:
        ValueError: a class of ``own`` is not in ``classes``.
    """
    if labels is None or own is None or classes is None or tuple(own) == tuple(classes):
        return labels
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in own if name not in numbers]:
        raise ValueError(
            f"the data have the class {unknown[0]!r}, and the run's classes are {', '.join(classes)}"
        )
    table = torch.tensor([numbers[name] for name in own], device=labels.device)
    return torch.where(labels < 0, labels, table[labels.clamp_min(0)])


def labels_for(model: Model, name: str, labels: Tensor | None, whose: str) -> Tensor | None:
    """Check labels for the trained model called ``name``, and return them.

    Raises:
        ValueError: the model is conditioned on labels, and a label cannot have occurred in
            training. The model would use no condition, or another class's.
    """
    condition = conditioning_of(model)
    if labels is None or not uses_labels(model) or type(condition) is not Labels:
        return labels
    least = -1 if isinstance(model, Classifies) else 0
    takes = LabelRange(name, condition.features, least, trained=True)
    for wrong in labels[takes.out_of_range(labels)][:1].tolist():
        takes.check(wrong, whose)
    return labels


def in_support(model: Model, data: Any) -> Any:
    """The data, if the model's likelihood is defined on their values; else ValueError."""
    target = target_of(model)
    if target == "category":
        return data  # uint8 values are classes for this likelihood
    if target == "count":
        return datasets.of_counts(data)
    return datasets.in_support(data, unit=needs_unit(model))


def needs_unit(model: Model) -> bool:
    """Whether the model takes only values in [0, 1]; assumed if its likelihood is not known."""
    return likelihood_of(model) is None or target_of(model) in ("unit", "level")


def record(folder: Path, train: Any, val: Any) -> None:
    """Write data.json if the run has none."""
    if (folder / RECORD).exists():
        return
    facts: dict[str, Any] = {"train": train.provenance, "validation": val.provenance}
    if train.classes is not None:
        facts["classes"] = list(train.classes)
    if getattr(train, "columns", None) is not None:
        facts["columns"] = list(train.columns)
    rows = getattr(val, "rows", None)
    if rows is not None and not isinstance(val, datasets.Sprites):
        facts["held_out"] = rows.tolist() if val.files is None else list(val.files)
    with atomic_write(folder / RECORD) as beside:
        beside.write_text(json.dumps(facts, indent=1) + "\n")


def class_names(config: TrainConfig) -> tuple[str, ...] | None:
    """The names of labels 0, 1, ... in the run's data, or None."""
    names = _record(config).get("classes")
    return None if names is None else tuple(names)


def label_of(name: str, classes: tuple[str, ...] | None) -> int:
    """The number of a class, given by its name if classes have names, or by its number.

    Raises:
        ValueError: neither a known name nor a number; the names are listed.
    """
    if classes is not None and name in classes:
        return classes.index(name)
    try:
        return int(name)
    except ValueError:
        known = "its data have no names of classes" if classes is None else ", ".join(classes)
        raise ValueError(
            f"there is no class {name!r}: give a number, or a name of {known}"
        ) from None


def _record(config: TrainConfig) -> dict[str, Any]:
    """The content of data.json of ``config``'s run; empty for a run that has not started."""
    if config.out is None or not (Path(config.out) / "config.yaml").is_file():
        return {}
    path = Path(config.out) / RECORD
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"{path} can't be read: {error}; remove it, and the data are split anew"
        ) from None
    right: dict[str, Any] = {"classes": str, "columns": str, "held_out": (str, int)}
    if isinstance(found, dict) and all(
        isinstance(found.get(key, []), list)
        and all(isinstance(v, kind) for v in found.get(key, []))
        for key, kind in right.items()
    ):
        return found
    raise ValueError(
        f"{path} must have classes and columns, lists of names, and held_out, a list of samples: remove it, and "
        "the data are split anew"
    )
