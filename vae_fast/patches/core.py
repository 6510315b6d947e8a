"""Replace functions of another library, report the outcome, and restore them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Noise = Literal["native", "torch"]
NOISES = get_args(Noise)
LIBRARIES = ("pythae", "scvi", "diffusers")

_MARK = "__vae_fast_replaces__"


@dataclass(frozen=True)
class Target:
    """One function, class or module attribute of a library, and its replacement."""

    path: str
    """Dotted: module, then class if there is one, then name."""
    known: tuple[str, ...]
    """The hashes (``source_hash``) of the sources that the replacement was written for; or one
    dotted name, of an object that the attribute has to be."""
    replace: Callable[[Any], Any]
    """Makes the replacement from the original, which the replacement may call in other cases."""
    uses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Other functions that the original calls and the replacement covers: paths with their hashes."""


@dataclass(frozen=True)
class Table:
    """The replacements in one library."""

    package: str
    """The library's name for pip."""
    versions: tuple[str, str]
    """Supported versions: from the first on, and before the second."""
    targets: Callable[[Noise], Sequence[Target]]


class Outcome(NamedTuple):
    """The outcome for one target."""

    target: str
    replaced: bool
    why: str
    """Empty, or why it was left alone."""


def source_hash(original: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an object's source, indentation removed."""
    text = textwrap.dedent(inspect.getsource(original))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def _owner(path: str) -> tuple[Any, str]:
    """The module or class that holds the last name of a dotted path."""
    *parts, name = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not ".".join(parts[:end]).startswith(error.name or "?"):
                raise
            continue
        for part in parts[end:]:
            owner = getattr(owner, part)
        return owner, name
    raise AttributeError(path)


def _is_known(original: object, known: Sequence[str]) -> bool:
    if any("." in name for name in known):
        owner, name = _owner(known[0])
        return original is getattr(owner, name)
    try:
        return source_hash(original) in known
    except (OSError, TypeError):  # without readable source
        return False


class Patch:
    """The replacements in one library, made by ``patch``. As a context manager it undoes them at
    the end.

    Attributes:
        report: the outcome for each target, ``Outcome(target, replaced, why)``.
    """

    def __init__(self, library: str, noise: Noise) -> None:
        self.library, self.noise = library, noise
        self.report: tuple[Outcome, ...] = ()
        self._undo: list[tuple[Any, str, Any, Any]] = []  # owner, name, original, replacement

    def _apply(self, table: Table, version: str) -> None:
        low, high = table.versions
        fits = _numbers(low) <= _numbers(version) < _numbers(high)
        found = []
        for target in table.targets(self.noise):
            why = "" if fits else f"{table.package} {version} is not within [{low}, {high})"
            found.append(Outcome(target.path, *self._replace(target, why)))
        self.report = tuple(found)
        left = [o for o in found if not o.replaced]
        if left:
            warnings.warn(
                f"vae_fast left {len(left)} of {len(found)} functions of {table.package} {version} "
                "as they are: " + "; ".join(f"{o.target}: {o.why}" for o in left),
                RuntimeWarning,
                stacklevel=4,
            )

    def _replace(self, target: Target, why: str) -> tuple[bool, str]:
        if why:
            return False, why
        try:
            owner, name = _owner(target.path)
            original = vars(owner)[name]
            called = [(path, getattr(*_owner(path)), known) for path, known in target.uses]
        except (AttributeError, KeyError, ModuleNotFoundError) as error:
            return False, f"there is no such name ({error})"
        for path, function, known in [(target.path, original, target.known), *called]:
            if not _is_known(function, known):
                return False, f"{path} has a source that the replacement was not written for"
        replacement = target.replace(original)
        if inspect.isfunction(replacement):
            replacement.__name__, replacement.__doc__ = original.__name__, original.__doc__
            replacement.__qualname__ = original.__qualname__
            setattr(replacement, _MARK, target.path)
        setattr(owner, name, replacement)
        self._undo.append((owner, name, original, replacement))
        return True, ""

    def undo(self) -> None:
        """Restore the originals. A function that other code has replaced since is left, with a
        warning."""
        while self._undo:
            owner, name, original, replacement = self._undo.pop()
            if vars(owner).get(name) is replacement:
                setattr(owner, name, original)
            else:
                warnings.warn(
                    f"{owner.__name__}.{name} was replaced again since vae_fast.patch"
                    f"({self.library!r}): it is left as it is",
                    RuntimeWarning,
                    stacklevel=2,
                )
        _active.pop(self.library, None)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"vae_fast.patch({self.library!r}, noise={self.noise!r})"]
        lines += [
            f"  {'+' if o.replaced else '-'} {o.target} {o.why}".rstrip() for o in self.report
        ]
        return "\n".join(lines)


_active: dict[str, Patch] = {}


def patch(library: str, noise: Noise = "native") -> Patch:
    """Replace functions of a library by faster ones of vae_fast with the same results.

    >>> vae_fast.patch("scvi")                       # from here on
    >>> with vae_fast.patch("pythae", noise="torch") as patch:
    ...     print(patch)

    Args:
        library: "pythae", "scvi" (scvi-tools) or "diffusers".
        noise: "native" draws noise by vae_fast's keys; "torch" as the library itself does, so that
            a seed gives the same draws with and without the patch.

    Returns:
        A ``Patch``: ``undo()``, or the end of a ``with`` block, restores the originals; ``report``
        says for each function whether it was replaced, or why not.

    Raises:
        ValueError: an unknown library or noise.
        ModuleNotFoundError: the library is not installed.
        RuntimeError: the library is already patched.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if library in _active:
        raise RuntimeError(
            f"{library} is patched already, with noise={_active[library].noise!r}: call undo() of "
            "that patch first"
        )
    table: Table = importlib.import_module(f"vae_fast.patches.{library}_table").TABLE
    try:
        version = importlib.metadata.version(table.package)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"vae_fast.patch({library!r}) needs {table.package}, which is not installed: "
            f"pip install {table.package}",
            name=library,
        ) from None
    made = Patch(library, noise)
    made._apply(table, version)
    _active[library] = made
    return made
