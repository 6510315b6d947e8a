"""Windows: the parts of an epoch that a reader of shards holds in memory."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from vae_fast.data.order import Cuts


@dataclass(frozen=True)
class Window:
    """Shards whose samples are shuffled together: samples start to stop of the epoch's order."""

    members: list[int]
    start: int
    stop: int
    key: tuple[int, ...] | None  # of the mixing; None is none

    def own_range(self, cuts: Cuts, begin: int) -> torch.Tensor:
        """This rank's samples of the window that belong to batch `begin` or a later one."""
        if cuts.world_size == 1:
            first, last = cuts.global_bounds(begin)[0], cuts.global_bounds(len(cuts) - 1)[1]
            low, high = max(first, self.start), min(last, self.stop)
            return torch.arange(low, max(low, high))
        first = max(begin, min(self.start // cuts.global_batch, len(cuts)) - 1)
        found = []
        for batch in range(max(first, 0), len(cuts)):
            start, stop = cuts.bounds(batch)
            if start >= self.stop:
                break
            found.append(
                torch.arange(max(start, self.start), max(min(stop, self.stop), self.start))
            )
        return torch.cat(found) if found else torch.arange(0)


class Buffers:
    """Memory for windows, reused once no tensor holds any of it.

    A page fault costs more than the copy into the page, and a window has tens of thousands of
    pages.
    """

    def __init__(self, pin: bool):
        self._pin = pin  # torch keeps and reuses pinned memory itself
        self._kept: list[tuple[np.ndarray, weakref.ref[Any]]] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor. Its memory returns here when all its views are freed."""
        if self._pin:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = prod(shape) * dtype.itemsize
        free = [memory for memory, user in self._kept if user() is None]
        self._kept = [pair for pair in self._kept if pair[1]() is not None]
        memory = next((memory for memory in free if len(memory) >= size), None)
        if memory is None:  # free blocks that are too small are released
            free.clear()
            memory = np.empty(size, np.uint8)
        lent = memory[:size]  # a separate object, which tensors on it keep alive
        self._kept.append((memory, weakref.ref(lent)))
        return torch.from_numpy(lent).view(dtype).view(shape)


@dataclass
class RankWindow:
    """This rank's samples of a window, in the order of serving."""

    images: torch.Tensor
    labels: torch.Tensor | None

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.images[start:stop], None if self.labels is None else self.labels[start:stop]


@dataclass
class PendingWindow:
    """A window that threads are gathering."""

    window: RankWindow
    tasks: list[Future[Any]]

    def wait(self) -> RankWindow:
        """Wait for the whole window; raises the first error of a task."""
        for task in self.tasks:
            task.result()
        return self.window


def join(
    parts: list[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Join the parts of one batch from its windows."""
    if len(parts) == 1:
        return parts[0]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), None if labels[0] is None else torch.cat(labels)
