"""A step captured once in a CUDA graph and replayed: one launch instead of a hundred.

The graph's memory is fixed. Each batch is copied to the captured batch's memory. ``Step.take``
changes weights, optimizer state, metrics and schedule values in place. Noise comes from torch's
generator, whose state a replay advances. So captured and eager steps give the same numbers, to the
bit unless their launches are merged (``vae_fast.train.merged``).
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vae_fast.data.rows import Rows
from vae_fast.models.interface import Model
from vae_fast.train.distributed import Share
from vae_fast.train.python_snapshot import PythonSnapshot

if TYPE_CHECKING:
    from vae_fast.train.merged import MergedStep

Take = Callable[[Share], tuple[Tensor, ...]]

# Eager steps before the capture, in which libraries create their plans and workspaces.
WARM_UP = 3


class Graph(Protocol):
    """The operations of a CUDA graph that ``CapturedStep`` needs.

    ``waited``: whether the work of the last ``warm_up`` waited for the device.
    """

    waited: bool

    def warm_up(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Do the work in the same conditions as the capture."""

    def capture(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Record the work without doing it. Returns the tensors that replays write to."""

    def replay(self) -> None:
        """Do the recorded work."""


class CapturedStep:
    """Takes the steps of ``take`` by a graph for the first batch's shapes.

    A batch of another shape, such as an epoch's last, is taken eagerly, with one warning. All steps
    are taken eagerly, with a warning, if a step changes Python state of the model, such as a
    counter, or reads a value back from the device.

    Args:
        take: a step on the device's tensors alone. It reads no value back, and it reads all that
            differs between steps from tensors at fixed addresses. This returns copies of what it
            returns.
        graph: a new graph.
        model: its modules are checked for Python state that a step changes.
        merged: the same step in fewer launches, or why there is none. The first batch compares it
            with ``take``. If they differ, this warns and captures ``take``.
    """

    def __init__(
        self,
        take: Take,
        graph: Graph,
        model: Model | None = None,
        merged: MergedStep | str = "",
    ) -> None:
        self.name = "graph"
        self.why_not = ""  # why steps are not captured; "" if they are
        self._take = take
        self._graph = graph
        self._model = model
        self._merged = None if isinstance(merged, str) else merged
        self.how = f", op by op ({merged})" if isinstance(merged, str) and merged else ""
        self.takes_rows = self._merged is not None
        self._warmed = 0
        self._batch: Share | None = None  # the memory from which the graph reads its batch
        self._outputs: tuple[Tensor, ...] = ()
        self._said = False

    @property
    def is_captured(self) -> bool:
        return bool(self._outputs)

    def __call__(self, share: Share) -> tuple[Tensor, ...]:
        """Take the step on this batch."""
        if self.why_not:
            return self._take(share)
        if self._merged is not None:
            self._settle_merged(share)
        if not self.takes_rows:
            share = share.gathered()
        if self._batch is None and share.part == 1.0:
            self._batch = Share(_cloned(share.images), _cloned(share.labels))
        if self._batch is None or not self._fits(share):
            self._say(share)
            return self._take(share)
        if self._warmed < WARM_UP:
            return self._warm_up(share)
        batch: Any = self._batch
        for into, value in zip(batch[:2], share[:2], strict=True):
            if isinstance(into, Rows):
                into.index.copy_(value.index, non_blocking=True)
            elif into is not None:
                into.copy_(value, non_blocking=True)
        if not self.is_captured:
            self._outputs = self._graph.capture(lambda: self._take(batch))
        self._graph.replay()
        # Copies, because the next replay writes to the same memory.
        return _copies(self._outputs)

    def _settle_merged(self, share: Share) -> None:
        """Take steps by ``merged`` from here on, if it does what ``take`` does."""
        merged, self._merged = self._merged, None
        assert merged is not None
        if differs := merged.differs(share):
            warnings.warn(
                f"the {differs} of the step with merged launches is not the eager step's: steps are "
                "captured op by op",
                stacklevel=4,
            )
            self.takes_rows = False
        else:
            self._take = merged.take

    def _warm_up(self, share: Share) -> tuple[Tensor, ...]:
        self._warmed += 1
        snapshot = PythonSnapshot(self._model) if self._warmed == WARM_UP else None
        outputs = self._graph.warm_up(lambda: self._take(share))
        if snapshot is not None and (changed := snapshot.changed()):
            self.why_not = f"each step changes {changed}, in Python"
        elif self._graph.waited:
            self.why_not = "each step waits for the device or copies values from the host"
        if self.why_not:
            warnings.warn(
                f"steps are taken eagerly and not captured in a CUDA graph: {self.why_not}",
                stacklevel=4,
            )
        return outputs

    def _fits(self, share: Share) -> bool:
        batch: Any = self._batch
        return share.weight == share.part == 1.0 and all(
            type(mine) is type(other)
            and (mine is None or (mine.shape, mine.dtype) == (other.shape, other.dtype))
            and (not isinstance(mine, Rows) or mine.data is other.data)
            for mine, other in zip(batch[:2], share[:2], strict=True)
        )

    def _say(self, share: Share) -> None:
        if not self._said:
            self._said = True
            warnings.warn(
                f"a batch of shape {tuple(share.images.shape)} is taken eagerly: the "
                f"captured step is for {'whole ones' if self._batch is None else tuple(self._batch.images.shape)}",
                stacklevel=4,
            )


def _cloned(given: Any) -> Any:
    """A copy in memory that the step owns. The data that ``Rows`` refer to are not copied."""
    if isinstance(given, Rows):
        return replace(given, index=given.index.clone())
    return None if given is None else given.clone()


def _copies(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of the outputs. If all are views into one tensor, views into a single copy of it."""
    whole = outputs[0]._base if outputs else None
    if whole is None or not all(output._base is whole for output in outputs):
        return tuple(output.clone() for output in outputs)
    copy = whole.clone()
    return tuple(copy[output.storage_offset()] for output in outputs)


class CudaGraph:
    """torch's CUDA graph, with the side stream on which a capture needs its work warmed up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device  # may differ from the current device
        self.waited = False
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream), _watched() as waits:
                outputs = work()
            self.waited = bool(waits)
            before.wait_stream(self._stream)
            for output in outputs:
                output.record_stream(before)
        return outputs

    def capture(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        # Freeing the graph of an earlier run during a capture would end the capture.
        gc.collect()
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(self._graph, stream=self._stream),
            ):
                return work()
        except RuntimeError as error:
            raise RuntimeError(
                "this step can't be captured in a CUDA graph: the model may read a value on the "
                "host, or make a tensor of the host's numbers; train with capture false"
            ) from error
        finally:
            if was_enabled:
                gc.enable()

    def replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


@contextmanager
def _watched() -> Iterator[list[str]]:
    """After the block, the list holds torch's warnings about waiting for the GPU within it."""
    mode = torch.cuda.get_sync_debug_mode()
    waits: list[Any] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in said:
        if "synchronizing CUDA operation" in str(warning.message):
            waits.append(str(warning.message))
        elif "ynchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
