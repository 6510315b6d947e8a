"""A training step's buffers for cast weights and gradients.

The engine keeps all gradients in one buffer, and in bf16 all cast weights in another, so that norm,
optimizer and cast are one op each. Layers that support it (``ops.mlp``) read casts from and write
gradients to these buffers, without a copy. Gradients of other layers are copied.
"""

from __future__ import annotations

from torch import Tensor


class ParameterBuffers:
    """The cast and the gradient buffer of each parameter that has one.

    Args:
        gradients: a tensor of each parameter's shape and dtype.
        casts: a tensor of each parameter's shape, in the products' dtype.
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

        A weight used twice has two gradients, which autograd adds. They need separate tensors.
        """
        buffer = self._free.pop(parameter, None)
        # A new tensor over the same memory: autograd keeps a gradient without other references, and
        # would copy one with them.
        return None if buffer is None else buffer.detach()


_current: ParameterBuffers | None = None


def current() -> ParameterBuffers | None:
    """The buffers of the current step, if any."""
    return _current


class using:
    """A context that sets ``current()``."""

    def __init__(self, buffers: ParameterBuffers | None) -> None:
        self._buffers = buffers

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self._buffers

    def __exit__(self, *error: object) -> None:
        global _current
        _current = self._before
