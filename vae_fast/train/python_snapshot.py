"""A snapshot of a model's Python state: a model that counts its steps in Python cannot be
replayed."""

from __future__ import annotations

import itertools
import random
from collections import deque
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from vae_fast.models.interface import Model

DEPTH = 4  # levels of nested containers and objects that are compared
MOST = 1000  # elements of a container that are compared
BYTES = 1 << 16  # of a NumPy array

_VALUES = (bool, int, float, complex, str, bytes, type(None), itertools.count)
_WHOLE = (Tensor, nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_HOLDERS = ("_parameters", "_buffers", "_modules")
_INTERNAL = set(vars(nn.Module())) - {"training", *_HOLDERS}


class PythonSnapshot:
    """The attributes of a model's modules, and Python's and NumPy's generators, at one moment.

    Tensors are compared by identity, because ops may write to them. Globals, closures and what is
    nested deeper than ``DEPTH`` are not compared.
    """

    def __init__(self, model: Model | None) -> None:
        self._model = model
        self._then = _state(model)

    def changed(self) -> str:
        """The name of something that has changed since; empty if nothing has."""
        now = _state(self._model)
        for name in {**self._then, **now}:
            if self._then.get(name) != now.get(name):
                return name
        return ""


class _Identity:
    """An object that equals itself alone. It is held, so that no other object gets its address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]  # Python's way to say so


def _state(model: Model | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "Python's random": random.getstate(),
        "numpy.random": _drawn(np.random.get_state()),
    }
    for path, module in () if model is None else model.named_modules():
        for key, value in vars(module).items():
            if key in _HOLDERS:
                for name, held in value.items():
                    found[f"{path}.{name}".lstrip(".")] = _Identity(held)
            elif key not in _INTERNAL:
                found[f"{path}.{key}".lstrip(".")] = _frozen(value, DEPTH)
    return found


def _drawn(state: Any) -> tuple[Any, ...]:
    """The state of one of NumPy's legacy generators."""
    name, words, *rest = state
    return name, words.tobytes(), *rest


def _frozen(value: Any, depth: int) -> Any:
    """A value that compares equal to a later ``_frozen(value)`` exactly if ``value`` has not
    changed."""
    if isinstance(value, _VALUES):
        return type(value), repr(value)  # as text NaN equals NaN, and 0.0 differs from -0.0
    if isinstance(value, _WHOLE) or depth == 0:
        return _Identity(value)
    if isinstance(value, random.Random):
        return _Identity(value), value.getstate()
    if isinstance(value, np.random.Generator):
        return _Identity(value), repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _Identity(value), _drawn(value.get_state())
    if isinstance(value, np.ndarray):
        return _Identity(value), value.tobytes() if value.nbytes <= BYTES else None
    if isinstance(value, dict):
        return type(value), _frozen(list(value), depth), _frozen(list(value.values()), depth)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        seen = itertools.islice(value, MOST)
        return type(value), len(value), [_frozen(v, depth - 1) for v in seen]
    if isinstance(inner := getattr(value, "__dict__", None), dict):
        return _Identity(value), _frozen(inner, depth - 1)
    return _Identity(value)
