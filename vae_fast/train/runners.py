"""The runners that take a run's steps. Only ``choose`` decides which one, and it returns the
reason.

A call with a batch takes one whole step: loss, gradients, guard, optimizer, moving average,
metrics. The eager runner is the reference. The recorded step and the CUDA graph give the same bits
as it does. The native step rounds differently in the last places, so a run keeps its runner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from vae_fast.layers import has_hooks
from vae_fast.models.interface import Model
from vae_fast.models.phases import Phase
from vae_fast.train.captured import CapturedStep, CudaGraph
from vae_fast.train.distributed import Share
from vae_fast.train.merged import merged
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
        why_not: empty, or the reason why the runner cannot take further steps; then another one is
            chosen. The step in which this becomes known is still taken.
    """

    name: str
    why_not: str

    def __call__(self, share: Share) -> Outcomes:
        """Take a step; returns each phase's norm and whether it was skipped, as ``Step.take``
        does."""


class Eager:
    """Every step runs the model's own Python."""

    name, why_not = "eager", ""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, share: Share) -> Outcomes:
        return self._step.take(share)


class RecordedRunner:
    """Forward and backward are replayed from a recording of their ops; the rest is a few ops over
    one buffer."""

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
            self.why_not = "the model's modules have hooks, which a recording cannot call"
            return work()
        kind, check = (step.schedule_values.beta, share.weight), step.first_of_epoch
        return LossOutput(*self.recorded(work, share[:2], kind, check=check))


def choose(step: Step, refused: Mapping[str, str]) -> tuple[Runner, str]:
    """The runner for ``step``, and a sentence that says which it is and why the faster ones cannot
    be used.

    The configuration's ``runner`` is tried first. ``auto`` takes the fastest usable one, and the
    recorded runner or the graph only for models made of vae_fast's and torch's classes, unless
    ``capture`` is true. If a runner cannot be used, the next in the order native, recorded, eager
    (on a GPU: graph, eager) is tried.

    Args:
        refused: runners that this run has given up, and why.
    """
    config = step.config
    order = ["graph", "eager"] if step.device.type == "cuda" else ["native", "recorded", "eager"]
    asked = config.runner
    if asked == "auto" and config.capture is False:
        return Eager(step), "Steps are taken by the eager runner: capture is false"
    if asked in order:
        order = order[order.index(asked) :]
    elif asked != "auto":
        order = [asked, *order]
    reasons: list[str] = []
    for name in order:
        found = refused.get(name) or _MAKERS[name](step)
        if not isinstance(found, str):
            why = "".join(reasons)
            return found, f"Steps are taken by the {name} runner{getattr(found, 'how', '')}{why}"
        reasons.append(f"; the {name} runner can't take them: {found}")
    raise AssertionError("eager steps serve every run")


def _native(step: Step) -> Runner | str:
    if step.device.type != "cpu":
        return "it is for CPUs"
    if step.config.compile:
        return "the networks are to run under torch.compile"
    return _not_over_one_buffer(step) or NativeRunner.make(step)


def _recorded(step: Step) -> Runner | str:
    if step.device.type != "cpu":
        return "it is for CPUs"
    if step.config.compile:
        return "the networks are to run under torch.compile"
    return _unasked(step) or _not_over_one_buffer(step) or RecordedRunner(step)


def _unasked(step: Step) -> str:
    """Why the model is not recorded unless the configuration asks for it; "" if it may be."""
    if step.config.runner in ("recorded", "graph") or step.config.capture:
        return ""
    foreign = not_ours(step.model)
    return foreign and (
        f"{foreign} is not vae_fast's, and may depend on what a recording can't see (if it does the same "
        "in every step: --capture true)"
    )


def not_ours(model: Model) -> str:
    """The name of a module class that is neither vae_fast's nor torch's, or of a method replaced on
    an instance; "" if there is none.

    A recording contains the ops that Python issued. A user's code may depend on a global, a closure
    or the clock, and the recording would not see a change. Our classes depend on none of these.
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
    if why_not := _unasked(step) or _not_over_one_buffer(step):
        return why_not
    return CapturedStep(step.take, CudaGraph(step.device), step.model, merged(step))


def _not_over_one_buffer(step: Step) -> str:
    if step.updates[0].flat is not None:
        return ""
    if step.world.is_distributed:
        return "several processes train together"
    if step.config.accumulate > 1:
        return "accumulate takes batches in parts"
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
