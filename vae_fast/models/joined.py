"""What is defined on a whole batch, where several processes have a part of it each.

An engine says how parts are joined (``batch_joined_by``); by itself a process has the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn


class Ranks(NamedTuple):
    """How processes speak to each other; each call is collective. Tensors may be changed in place.

    ``mean``: from this process's mean to that of the joined batch. ``sum``: the sum over processes.
    ``first``: what the first process has.
    """

    mean: Callable[[Tensor], Tensor]
    sum: Callable[[Tensor], Tensor] | None = None
    first: Callable[[Tensor], Tensor] | None = None


_ranks: Ranks | None = None


def joined_mean(mean: Tensor) -> Tensor | None:
    """A batch's mean over all processes' parts of the batch; None if this is all of it."""
    return None if _ranks is None else _ranks.mean(mean)


def joined_sum(part: Tensor) -> Tensor:
    """The sum over all processes' parts of the batch; ``part`` itself if this is all of it."""
    return part if _ranks is None or _ranks.sum is None else _ranks.sum(part)


def of_first(value: Tensor) -> Tensor:
    """The first process's value, for draws that all are to share."""
    return value if _ranks is None or _ranks.first is None else _ranks.first(value)


@contextmanager
def batch_joined_by(ranks: Ranks | Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within, what is defined on a batch's mean takes it over all processes' parts of the batch.

    Args:
        ranks: how processes speak to each other; a function alone is ``Ranks.mean``; None for one
            process.
    """
    global _ranks
    before, _ranks = _ranks, Ranks(ranks) if callable(ranks) else ranks
    try:
        yield
    finally:
        _ranks = before


class WideBuffers(nn.Module):
    """A module whose floating-point buffers stay float32 in a half-precision model, which would round
    the small updates of running statistics to nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideBuffers:
        before = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # a mixin: torch is behind it
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < 4:
                setattr(self, name, buffer.to(moved.device))
        return self
