"""A step captured once in a CUDA graph, and replayed: one launch in place of a hundred.

The graph is of fixed memory. A batch is copied to where the captured one was; weights, optimizer,
metrics and what schedules say are changed in place, which is how all of ``Step.take`` works; noise
comes from torch's generator, whose state a replay advances. So captured steps and eager ones give
the same numbers.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from vae_fast.train.distributed import Share
from vae_fast.train.python_snapshot import PythonSnapshot

Take = Callable[[Share], tuple[Tensor, ...]]

# Steps taken eagerly before the capture, in which libraries make their plans and workspaces.
WARM_UP = 3


class Graph(Protocol):
    """What is needed of a CUDA graph.

    ``waited``: whether the latest work of ``warm_up`` waited for the device somewhere.
    """

    waited: bool

    def warm_up(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Do the work, as the capture will find it."""

    def capture(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Record the work without doing it; returns the tensors that replays will write to."""

    def replay(self) -> None:
        """Do the recorded work."""


class CapturedStep:
    """Takes steps as ``take`` does, by a graph of the first batch's shapes.

    A batch of other shapes, as an epoch's last may be, is taken eagerly, which is said once; and
    so are all steps, which is said too, if they leave something in the model's Python, such as a
    counter of its own, or read a value back from the device.

    Args:
        take: a step on tensors of the device alone: it reads no value back, and what differs
            from step to step it reads from tensors that stay where they are. What it returns is
            of the step's own; here it is returned as copies.
        graph: not captured yet.
        model: whose modules a step may leave something in.
    """

    def __init__(self, take: Take, graph: Graph, model: nn.Module | None = None) -> None:
        self.name = "graph"
        self.why_not = ""  # nothing is captured, and why
        self._take = take
        self._graph = graph
        self._model = model
        self._warmed = 0
        self._batch: Share | None = None  # the memory that the graph reads its batch from
        self._outputs: tuple[Tensor, ...] = ()
        self._said = False

    @property
    def is_captured(self) -> bool:
        return bool(self._outputs)

    def __call__(self, share: Share) -> tuple[Tensor, ...]:
        """Take the step on this batch."""
        if self.why_not:
            return self._take(share)
        if self._batch is None:
            self._batch = Share(*(None if t is None else t.clone() for t in share[:2]))
        if not self._fits(share):
            self._say(share)
            return self._take(share)
        if self._warmed < WARM_UP:
            return self._warm_up(share)
        for into, value in zip(self._batch[:2], share[:2], strict=True):
            if into is not None:
                into.copy_(value, non_blocking=True)
        if not self.is_captured:
            self._outputs = self._graph.capture(lambda: self._take(self._batch))
        self._graph.replay()
        # The next replay writes to the same memory.
        return tuple(output.clone() for output in self._outputs)

    def _warm_up(self, share: Share) -> tuple[Tensor, ...]:
        self._warmed += 1
        snapshot = PythonSnapshot(self._model) if self._warmed == WARM_UP else None
        outputs = self._graph.warm_up(lambda: self._take(share))
        if snapshot is not None and (changed := snapshot.changed()):
            self.why_not = f"each step changes {changed}, in Python"
        elif self._graph.waited:
            self.why_not = "each step waits for the device, or has numbers from the host"
        if self.why_not:
            warnings.warn(
                f"steps are taken one by one, and not captured in a CUDA graph: {self.why_not}",
                stacklevel=4,
            )
        return outputs

    def _fits(self, share: Share) -> bool:
        return share.weight == 1.0 and all(
            (mine is None) == (other is None)
            and (mine is None or (mine.shape, mine.dtype) == (other.shape, other.dtype))
            for mine, other in zip(self._batch[:2], share[:2], strict=True)
        )

    def _say(self, share: Share) -> None:
        if not self._said:
            self._said = True
            warnings.warn(
                f"a batch of shape {tuple(share.images.shape)} is taken step by step: the "
                f"captured step is for {tuple(self._batch.images.shape)}",
                stacklevel=4,
            )


class CudaGraph:
    """torch's CUDA graph, with the side stream that a capture wants its work to be warm on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device  # not the current one, where that is another
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
        # The graph of a run that is over, freed by chance during a capture, would end it.
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
    """What within waits for the GPU, in torch's words, once it is over."""
    waits, mode = [], torch.cuda.get_sync_debug_mode()
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
