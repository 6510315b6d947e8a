"""The rules for recording a part of a step, trusting the recording, and playing it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_fast.models.interface import Model
from vae_fast.train.python_snapshot import PythonSnapshot
from vae_fast.train.tape import Tape, equal_bits, record

Work = Callable[[], Sequence[Tensor]]

WARM_UP = 2  # times that the work is done before it is recorded
KINDS = 8  # kinds of work that have a tape: batches of other sizes, other weights of the KL
ATTEMPTS = 3  # differing recordings after which recording is given up


@dataclass
class _Kind:
    """Work of one kind: how often it was done, its tape, and whether the tape may be played."""

    done: int = 0
    attempts: int = 0
    tape: Tape | None = None
    trusted: bool = False


class RecordedStep:
    """Repeats work of a few kinds, from a tape where that gives the same result.

    A tape is trusted once a second recording has the same calls, and playing it from the same state
    has given the same bits as the work itself. ``check`` records and compares once more. Work is
    not played if it branches on a tensor's value, if its calls differ each time, or if it changes
    Python state.

    Args:
        model: its modules are checked for Python state that the work changes.
    """

    def __init__(self, model: Model | None = None) -> None:
        self._model = model
        self.why_not = ""  # why nothing is recorded any more; "" while it is
        self.played = 0
        self._kinds: dict[Hashable, _Kind] = {}

    def __call__(
        self,
        work: Work,
        inputs: Sequence[Tensor | None],
        kind: Hashable = None,
        *,
        check: bool = False,
    ) -> Sequence[Tensor]:
        """Do the work, or play its tape.

        Args:
            inputs: the tensors that differ between calls.
            kind: equal for work with the same calls; the inputs' geometry is part of it
                automatically.
            check: compare the tape with the work again.
        """
        if self.why_not:
            return work()
        kind = (kind, *(None if t is None else (t.shape, t.stride(), t.dtype) for t in inputs))
        state = self._kinds.pop(kind, None) or _Kind()
        self._kinds[kind] = state  # the most recently used is the last
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        if state.trusted and not check:
            self.played += 1
            with torch.inference_mode():
                assert state.tape is not None  # a trusted kind has a tape
                return state.tape.play(*inputs)
        state.done += 1
        if state.done <= WARM_UP:
            return work()
        return self._record(state, work, inputs)

    def _record(
        self, state: _Kind, work: Work, inputs: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        before = None if state.tape is None else Memory(state.tape.external())
        snapshot = PythonSnapshot(self._model)
        outputs, tape = record(work, inputs)
        if isinstance(tape, str):
            return self._leave(outputs, tape)
        if changed := snapshot.changed():
            return self._leave(outputs, f"each step changes {changed}, in Python")
        if state.tape is None or not tape.has_same_calls(state.tape):
            if state.trusted:
                warnings.warn(
                    "the model's Python has issued other ops than before: its steps are "
                    "taken eagerly from here on. --capture false takes all of them eagerly",
                    stacklevel=5,
                )
                return self._leave(outputs, "the model's calls have changed")
            state.tape, state.attempts = tape, state.attempts + 1
            if state.attempts > ATTEMPTS:
                return self._leave(outputs, "the model's calls differ from step to step")
        elif not state.trusted:
            assert before is not None  # set whenever there was a tape
            state.trusted = _replays_exactly(state.tape, inputs, before, outputs)
            if not state.trusted:
                return self._leave(outputs, "replaying the model's calls does not repeat a step")
        return outputs

    def _leave(self, outputs: Sequence[Tensor], why_not: str) -> Sequence[Tensor]:
        self.why_not = why_not
        self._kinds.clear()
        return outputs


def _replays_exactly(
    tape: Tape, inputs: Sequence[Tensor | None], before: Memory, outputs: Sequence[Tensor]
) -> bool:
    """Whether playing from the state ``before`` gives these outputs and ends in the present state.
    The present state is kept."""
    after = Memory(tape.external())
    before.restore()
    try:
        with torch.inference_mode():
            played = tape.play(*inputs)
        return after.is_unchanged() and all(map(equal_bits, played, outputs))
    except Exception:  # noqa: BLE001 (whatever it is, the work itself has been done)
        return False
    finally:
        after.restore()


class Memory:
    """A copy of CPU tensors' contents and of torch's generator, to be restored later."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # Whole storages, as bytes: a tensor may be an expanded part of one.
        storages = {s._cdata: s for s in (t.untyped_storage() for t in tensors)}
        memory = [
            torch.empty(0, dtype=torch.uint8, device="cpu").set_(s) for s in storages.values()
        ]
        self._memory = [(m, m.clone()) for m in memory]
        self._noise = torch.get_rng_state()

    def restore(self) -> None:
        for memory, content in self._memory:
            memory.copy_(content)
        torch.set_rng_state(self._noise)

    def saved_content(self, tensor: Tensor) -> Tensor:
        """The saved content of ``tensor``, which must be one of the copied ones."""
        storage = tensor.untyped_storage()._cdata
        (content,) = (c for m, c in self._memory if m.untyped_storage()._cdata == storage)
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        return tensor.new_empty(0).set_(content.untyped_storage(), *place)

    def is_unchanged(self) -> bool:
        return torch.equal(self._noise, torch.get_rng_state()) and all(
            torch.equal(memory, content) for memory, content in self._memory
        )
