"""Where a training step keeps its weights' casts and wants its gradients.

The engine has all gradients in one buffer, and in bf16 all weights cast in another, so that the
norm, the optimizer and the cast are one op each. Layers that know of this (``ops.mlp``) read a
weight's cast and write a gradient's product where the engine wants it, which spares a copy of each;
others needn't know.
"""

from __future__ import annotations

from torch import Tensor


class ParameterBuffers:
    """For each parameter of a model, its cast and its gradient's place, where there are such.

    Args:
        gradients: of each parameter's shape and dtype.
        casts: of each parameter's shape, in the dtype that products are computed in.
    """

    def __init__(self, gradients: dict[Tensor, Tensor], casts: dict[Tensor, Tensor]) -> None:
        self.casts = casts
        self._gradients = gradients
        self._free: dict[Tensor, Tensor] = {}

    def begin(self) -> None:
        """Nothing of the last step's gradients is wanted any more."""
        self._free = dict(self._gradients)

    def take(self, parameter: Tensor) -> Tensor | None:
        """The place of the parameter's gradient for whoever asks first; None for all others.

        A weight that is used twice has two gradients, which autograd adds up: two tensors.
        """
        place = self._free.pop(parameter, None)
        # Another tensor of the same memory: autograd keeps what nobody else holds, and copies
        # what somebody does.
        return None if place is None else place.detach()


_current: ParameterBuffers | None = None


def current() -> ParameterBuffers | None:
    """The places of the step under way, if any."""
    return _current


class using:
    """``current()`` within a ``with`` block."""

    def __init__(self, places: ParameterBuffers | None) -> None:
        self._places = places

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self._places

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self._before
