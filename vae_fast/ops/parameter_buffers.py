"""The buffers in which a training step keeps its weights' casts and its gradients.

The engine keeps all gradients in one buffer, and in bf16 all cast weights in another, so that norm,
optimizer and cast are one op each. Layers that support this (``ops.mlp``) read a weight's cast and
write its gradient directly into these buffers, which saves a copy of each. Gradients of other
layers are copied.
"""

from __future__ import annotations

from torch import Tensor


class ParameterBuffers:
    """The cast and the gradient buffer of each parameter that has one.

    Args:
        gradients: of each parameter's shape and dtype.
        casts: of each parameter's shape, in the dtype that products are computed in.
    """

    def __init__(self, gradients: dict[Tensor, Tensor], casts: dict[Tensor, Tensor]) -> None:
        self.casts = casts
        self._gradients = gradients
        self._free: dict[Tensor, Tensor] = {}

    def begin(self) -> None:
        """Start a step: all gradient buffers are free again."""
        self._free = dict(self._gradients)

    def take(self, parameter: Tensor) -> Tensor | None:
        """The parameter's gradient buffer for the first caller; None for all others.

        A weight that is used twice has two gradients, and autograd adds them: they need two
            tensors.
        """
        buffer = self._free.pop(parameter, None)
        # A new tensor over the same memory: autograd keeps a gradient that nobody else holds, and
        # copies others.
        return None if buffer is None else buffer.detach()


_current: ParameterBuffers | None = None


def current() -> ParameterBuffers | None:
    """The buffers of the current step, if any."""
    return _current


class using:
    """``current()`` within a ``with`` block."""

    def __init__(self, buffers: ParameterBuffers | None) -> None:
        self._buffers = buffers

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self._buffers

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self._before
