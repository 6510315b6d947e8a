"""Statistics of a batch that is split over several processes, or taken in several parts.

An engine sets how the processes communicate (``batch_joined_by``). Without it, a process has the
whole batch. It also says when a part of a batch is not the last (``before_last_part``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Ranks(NamedTuple):
    """The collective operations of the processes. They may change their argument in place.

    ``mean``: the whole batch's mean, from this process's mean. ``sum``: the sum over processes.
    ``first``: the first process's tensor.
    """

    mean: Callable[[Tensor], Tensor]
    sum: Callable[[Tensor], Tensor] | None = None
    first: Callable[[Tensor], Tensor] | None = None


_ranks: Ranks | None = None


def is_split() -> bool:
    """Whether other processes have parts of the batch."""
    return _ranks is not None


def joined_mean(mean: Tensor) -> Tensor:
    """The batch's mean over all processes; ``mean`` if this process has the whole batch."""
    return mean if _ranks is None else _ranks.mean(mean)


def joined_sum(part: Tensor) -> Tensor:
    """The batch's sum over all processes; ``part`` if this process has the whole batch."""
    return part if _ranks is None or _ranks.sum is None else _ranks.sum(part)


def of_first(value: Tensor) -> Tensor:
    """The first process's value, for random draws that all processes share."""
    return value if _ranks is None or _ranks.first is None else _ranks.first(value)


@contextmanager
def batch_joined_by(ranks: Ranks | Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """A context in which statistics of the batch are taken over all processes, by ``ranks``:
    `Ranks`, or its ``mean`` alone, or None for one process."""
    global _ranks
    before, _ranks = _ranks, Ranks(ranks) if callable(ranks) else ranks
    try:
        yield
    finally:
        _ranks = before


_more_follows = False


def more_of_batch_follows() -> bool:
    """Whether this is a part of a batch, and not the last: steps are counted with the last."""
    return _more_follows


@contextmanager
def before_last_part(more_follows: bool = True) -> Iterator[None]:
    """A context for a part of a batch; ``more_follows``: whether it is not the last."""
    global _more_follows
    before, _more_follows = _more_follows, more_follows
    try:
        yield
    finally:
        _more_follows = before


class WideBuffers(nn.Module):
    """A module whose floating-point buffers stay float32 in a half-precision model: half precision
    would round small updates of running statistics to zero."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideBuffers:
        before = {n: b for n, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # a mixin: torch is behind it
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < 4:
                setattr(self, name, buffer.to(moved.device))
        return self


class RunningMeans(WideBuffers):
    """A module with running means of batches: plain means over the first 1 / ``momentum`` batches,
    and with ``momentum`` as the latest batch's weight from then on."""

    batches_seen: Tensor
    momentum: float

    def start_means(self, momentum: float, **start: Tensor) -> None:
        """Register the means as buffers, with these values before the first batch."""
        self.momentum = momentum
        for name, value in start.items():
            self.register_buffer(name, value)
        self.register_buffer("batches_seen", torch.zeros(()))

    @torch.no_grad()
    def update_means(self, **means: Tensor) -> None:
        """Take a batch's means into account, over all processes."""
        self.batches_seen.add_(1)
        weight = self.batches_seen.reciprocal().clamp_min(self.momentum)
        for name, mean in means.items():
            buffer = getattr(self, name)
            buffer.lerp_(joined_mean(mean), weight.to(buffer.dtype))
