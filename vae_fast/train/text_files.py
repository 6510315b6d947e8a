"""Text and YAML out of files that anyone may have written: whole, of a sane size, in one sentence.

Imports no torch.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from vae_fast.train.extras import need

CONFIG_BYTES, TEXT_BYTES = 1 << 16, 1 << 30
YAML_NODES, YAML_DEPTH = 10_000, 50


def read_text(path: Path, most: int = TEXT_BYTES) -> str:
    """The text of a regular file of at most ``most`` bytes, or ValueError; OSError if it can't be read."""
    size = check_regular(path)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; at most {most:,} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} ends it") from None


def check_regular(path: Path) -> int:
    """The size of a regular file; ValueError for anything else.

    A pipe would be waited for without end, and a device may have none.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or a device"
        raise ValueError(f"{path} is {kind}: a file is wanted")
    return facts.st_size


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, or ValueError.

    A file whose aliases would make it more than ``YAML_NODES`` values, or endless, is refused.
    """
    yaml = need("yaml", "reading a configuration")
    text = read_text(path, CONFIG_BYTES)
    try:
        # In C where there is that: Python's takes a time that is the square of the depth.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        depths = _depths(yaml.parse(text, Loader=loader), yaml)
        for number, depth in enumerate(depths):
            if depth > YAML_DEPTH:
                raise ValueError(f"{path} is nested more than {YAML_DEPTH} deep")
            if number > YAML_NODES:
                raise ValueError(f"{path} holds more than {YAML_NODES:,} values")
        _count(yaml.compose(text, Loader=yaml.SafeLoader), {}, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {_in_a_line(error)}") from None
    except (ValueError, TypeError, OverflowError) as error:  # a date or a number that can't be
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no YAML: {_in_a_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 (the file's fault)
            f"{path} must hold names with values, as `epochs: 3`; it holds a {type(values).__name__}"
        )
    return values


def _depths(events: Any, yaml: Any) -> Any:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        yield depth


def _count(node: Any, known: dict[int, int | None], path: Path) -> int:
    """How many values a node stands for, those of its aliases counted anew each time."""
    if node is None:
        return 1
    if id(node) in known:
        if known[id(node)] is None:
            raise ValueError(f"{path} has an alias within what it stands for: it would have no end")
        return known[id(node)]
    known[id(node)] = None
    parts = node.value if isinstance(node.value, list) else []
    total = 1
    for part in parts:
        total += sum(
            _count(of, known, path) for of in (part if isinstance(part, tuple) else (part,))
        )
        if total > YAML_NODES:
            raise ValueError(
                f"{path} stands for more than {YAML_NODES:,} values, with its aliases written out"
            )
    known[id(node)] = total
    return total


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())
