"""Import paths, package.module:Class, by which a configuration names models, optimizers, transforms.

Importing a module runs its code, so a path that comes from a file is followed only into torch,
torchvision and this package, unless the user trusts the file. Imports no torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

OWN = ("torch", "torchvision", "vae_fast")
FORM = "package.module:Class"
Trust = bool | Collection[str]  # every path of a file, none, or these

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class FromFile(str):
    """A name that was read from a file, not given in Python or on the command line."""

    __slots__ = ()


class ImportPathError(ValueError):
    """A module or class does not exist. ``package`` is the package to install, if one is
    missing."""

    def __init__(self, message: str, package: str | None = None) -> None:
        super().__init__(message)
        self.package = package


def named_by(name: str, trust: Trust) -> str:
    """A name from a file: a plain str if ``trust`` covers it, else a ``FromFile``."""
    covered = trust if isinstance(trust, bool) else name in trust
    return str(name) if covered else FromFile(name)


def plain(value: Any) -> Any:
    """``value`` with every FromFile in its dicts and lists replaced by a plain str."""
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(of) for of in value]
    return str(value) if isinstance(value, FromFile) else value


def paths_typed(arguments: Collection[str]) -> set[str]:
    """The import paths in a command line's arguments."""
    return {found[0] for argument in arguments for found in _PATH.finditer(argument)}


def imported(path: str, what: str, kind: type, wanted: str) -> type:
    """The class that ``path`` names. This does not call it.

    Args:
        path: package.module:Class. A ``FromFile`` must name a public module of a package in
            ``OWN``, and a class that is defined in one of these packages.
        what: the setting that contains the path, for messages, such as "optimizer.name".
        kind: the required base class; ``wanted`` describes it in words.

    Raises:
        ValueError: it is no import path, comes from a file and names other code, names nothing, or
            names something that is not a subclass of ``kind``.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"{what} {str(path)!r} is not an import path, {FORM}")
    module_name, _, name = path.partition(":")
    from_file = isinstance(path, FromFile)
    if from_file and not _is_own(module_name, public=True):
        raise _untrusted(path, what, f"importing it runs the code of {module_name}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; something it imports was not
        package = module_name.partition(".")[0]
        raise ImportPathError(
            f"{what} {str(path)!r} leads nowhere: can't import {module_name!r} (is its folder on "
            "PYTHONPATH?)",
            package if error.name == package else None,
        ) from error
    if not hasattr(module, name):
        raise ImportPathError(f"{what} {str(path)!r} leads nowhere: {module_name} has no {name!r}")
    found = getattr(module, name)
    if not isinstance(found, type) or not issubclass(found, kind):
        other = "another class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ValueError(f"{what} {str(path)!r} must lead to {wanted}, and leads to {other}")  # noqa: TRY004
    if from_file and not _is_own(found.__module__):
        raise _untrusted(path, what, f"it is a class of {found.__module__}")
    return found


def _is_own(module: str, public: bool = False) -> bool:
    """Whether a module belongs to OWN; with ``public``, also whether no part of its name is
    private."""
    first, *rest = module.split(".")
    return first in OWN and not (public and any(part.startswith("_") for part in rest))


def _untrusted(path: str, what: str, why: str) -> ValueError:
    return ValueError(
        f"{what} {str(path)!r} was read from a file, and {why}. Only public classes of "
        f"{', '.join(OWN)} are taken from a file. If you trust this one: --trust, in Python "
        f"trust=True, or name {str(path)!r} on the command line of train"
    )


def check_entries(entries: Any) -> None:
    """Raise unless this is a list of {"name": ..., "args": {...}}; nothing is imported."""
    form = "each entry of augment is {name: Class or package.module:Class, args: {...}}"
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise TypeError(f"augment must be a list, and {form}; got {entries!r}")
    for entry in entries:
        known = isinstance(entry, Mapping) and set(entry) <= {"name", "args"}
        if not known or not isinstance(entry.get("name"), str):
            raise ValueError(f"{form}; got {entry!r}")
        if not isinstance(entry.get("args") or {}, Mapping):
            raise TypeError(f"the args of augment's {entry['name']} must be {{name: value}}")
