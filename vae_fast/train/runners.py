"""Who takes a run's steps. ``choose`` decides, and says why; nothing else does.

A runner is called with a batch and takes one whole step: loss, gradients, guard, optimizer, moving
average, metrics. Eager steps are the truth. The recorded step and the CUDA graph give their bits; the
native step rounds differently in the last places, so a run keeps its runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from vae_fast.layers import has_hooks
from vae_fast.models.phases import Phase
from vae_fast.train.captured import CapturedStep, CudaGraph
from vae_fast.train.distributed import Share
from vae_fast.train.native_runner import NativeRunner, replaced_in
from vae_fast.train.recorded import RecordedStep
from vae_fast.train.update import Update
from vae_fast.types import LossOutput

if TYPE_CHECKING:
    from vae_fast.train.step import Step

Outcomes = tuple[Any, ...]


class Runner(Protocol):
    """Takes steps.

    Attributes:
        name: as ``--runner`` has it.
        why_not: a sentence once the runner is of no use any more, and then another is chosen. The
            step in which that turns out has been taken all the same.
    """

    name: str
    why_not: str

    def __call__(self, share: Share) -> Outcomes:
        """Take a step; returns norm and skipped, of each phase in turn, as ``Step.take`` does."""


class Eager:
    """Every step in Python, as the model has it."""

    name, why_not = "eager", ""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, share: Share) -> Outcomes:
        return self._step.take(share)


class RecordedRunner:
    """Forward and backward from a recording of their ops; the rest is a few ops over one buffer."""

    name = "recorded"

    def __init__(self, step: Step) -> None:
        self.why_not = ""
        self.recorded = RecordedStep(step.model)
        self._step = step

    @property
    def played(self) -> int:
        """How many times the recording was played."""
        return self.recorded.played

    def __call__(self, share: Share) -> Outcomes:
        outcomes = self._step.take(share, self._differentiate)
        self.why_not = self.why_not or self.recorded.why_not
        return outcomes

    def _differentiate(self, share: Share, phase: Phase, update: Update) -> LossOutput:
        step = self._step

        def work() -> LossOutput:
            return step.differentiate(share, phase, update)

        if (step.first_of_epoch or self.played == 0) and has_hooks(step.model):
            self.why_not = "its modules have hooks, which are to be called"
            return work()
        kind, check = (step.schedule_values.beta, share.weight), step.first_of_epoch
        return LossOutput(*self.recorded(work, share[:2], kind, check=check))


def choose(step: Step, refused: Mapping[str, str]) -> tuple[Runner, str]:
    """The runner for ``step``, and a sentence that says which it is and why no other.

    The configuration's ``runner`` comes first; auto is the fastest that serves, where the recorded
    one serves models of vae_fast's own and torch's classes alone. Where that one does not serve, the
    next in the order native, recorded, eager (on a GPU: graph, eager) takes its place.

    Args:
        refused: runners that have turned out not to serve this run, and why.
    """
    config = step.config
    order = ["graph", "eager"] if step.device.type == "cuda" else ["native", "recorded", "eager"]
    asked = config.runner
    if asked == "auto" and not config.capture:
        return Eager(step), "Steps are taken by the eager runner: capture is false"
    if asked in order:
        order = order[order.index(asked) :]
    elif asked != "auto":
        order = [asked, *order]
    reasons = []
    for name in order:
        found = refused.get(name) or _MAKERS[name](step)
        if not isinstance(found, str):
            why = "".join(f"; {reason}" for reason in reasons)
            return found, f"Steps are taken by the {name} runner{why}"
        reasons.append(f"not the {name} one: {found}")
    raise AssertionError("eager steps serve every run")


def _native(step: Step) -> Runner | str:
    if step.device.type != "cpu":
        return "it is the CPU's"
    if step.config.compile:
        return "the networks are to run under torch.compile"
    return _not_over_one_buffer(step) or NativeRunner.make(step)


def _recorded(step: Step) -> Runner | str:
    if step.device.type != "cpu":
        return "it is the CPU's"
    if step.config.compile:
        return "the networks are to run under torch.compile"
    if step.config.runner != "recorded" and (foreign := not_ours(step.model)):
        return f"{foreign} is not vae_fast's, and may go by what a recording can't see"
    return _not_over_one_buffer(step) or RecordedRunner(step)


def not_ours(model: nn.Module) -> str:
    """A class among the model's modules that is neither vae_fast's nor torch's, or a method that one
    object has for itself; "" if there is none.

    A recording has the ops that Python came to. A global, a closure or the clock that a user's Python
    goes by may change unseen; ours goes by none.
    """
    for module in model.modules():
        kind = type(module)
        if kind.__module__.partition(".")[0] not in ("vae_fast", "torch"):
            return f"the class {kind.__qualname__} of {kind.__module__}"
    changed = replaced_in(model)
    return f"{changed}, which was replaced," if changed else ""


def _graph(step: Step) -> Runner | str:
    if step.device.type != "cuda":
        return "it needs a CUDA GPU"
    why_not = _not_over_one_buffer(step)
    return why_not or CapturedStep(step.take, CudaGraph(step.device), step.model)


def _not_over_one_buffer(step: Step) -> str:
    if step.updates[0].flat is not None:
        return ""
    if step.world.is_distributed:
        return "several processes train together"
    if step.config.accumulate > 1:
        return "batches are taken in parts"
    if len(step.phases) > 1:
        return "the model trains several losses in turn"
    return (
        "weights and gradients are not in one buffer each (more than 16 million, or no fused Adam)"
    )


_MAKERS: dict[str, Callable[[Any], Runner | str]] = {
    "native": _native,
    "recorded": _recorded,
    "graph": _graph,
    "eager": Eager,
}
