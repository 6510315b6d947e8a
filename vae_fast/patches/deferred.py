"""Terms that are computed only when it is known whether the terms or only their sums are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_SUMS = (torch.sum, Tensor.sum)
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]  # of a class it is a descriptor


class Deferred(torch.Tensor):
    """A tensor of terms (..., D) of which most callers need only ``.sum(-1)``.

    That sum is one fused op. Any other use computes the terms by the original code.
    """

    @staticmethod
    def __new__(cls, like: Tensor, terms: Callable[[], Tensor], sums: Callable[[], Tensor]) -> Any:
        return Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)

    def __init__(
        self, like: Tensor, terms: Callable[[], Tensor], sums: Callable[[], Tensor]
    ) -> None:
        self._terms, self._sums = terms, sums
        self._computed: Tensor | None = None

    def computed(self) -> Tensor:
        """The terms themselves."""
        if self._computed is None:
            self._computed = self._terms()
        return self._computed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _SHAPE:  # each access gives a new object, so "is" does not find it
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        if func in _SUMS and args and isinstance(args[0], cls):
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            others = set(kwargs) - {"dim"}
            if len(args) <= 2 and not others and dims in (-1, len(args[0].shape) - 1, (-1,), [-1]):
                return args[0]._sums()
        args, kwargs = tree_map_only(cls, cls.computed, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own names differ
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(
            f"{func} was given terms that are not made yet, past torch's functions: add 0 to them first"
        )
