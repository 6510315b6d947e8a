"""The runner of the native step. It compares each epoch's first step with the eager one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae_fast import __version__
from vae_fast.backend import get_backend, library
from vae_fast.data.rows import Rows
from vae_fast.layers import has_hooks
from vae_fast.models.interface import Model
from vae_fast.train.distributed import Share
from vae_fast.train.flat import FlatParameters
from vae_fast.train.native import NativeStep, StepTerms, build
from vae_fast.train.recorded import Memory

if TYPE_CHECKING:
    from vae_fast.train.step import Step


# How far the native step may be from the eager one. A ReLU whose input is zero up to rounding may
# be active in one and not in the other. That changes a layer's gradient by some thousandths of its
# norm, and now and then by more. So one differing check decides nothing.
class Bar(NamedTuple):
    terms: float  # of the largest term
    gradient: float  # of the norm of a parameter's gradient, plus
    all_gradients: float  # of the norm of all gradients


BARS = {"fp32": Bar(1e-5, 1e-2, 1e-4), "bf16": Bar(2e-3, 5e-2, 5e-3)}
OF_UPDATE = 1e-3  # of the norm of the change that one step makes with the same gradient
ROUNDING = 1e-6  # of a buffer's norm
MOST_CONSECUTIVE = 3  # consecutive differing checks after which the native step is given up


class NativeRunner:
    """Takes steps with ``native``.

    The first step of the run and of each epoch is compared. Terms and gradients are compared with
    the eager step's from the same state; then weights, moments and moving average with what torch's
    optimizer makes of the native step's gradients. If they differ, the eager step's result is kept
    and the next step is compared too. After ``MOST_CONSECUTIVE`` such steps the native step is given up.

    ``Step.checks`` holds the checks' results, and checkpoints save it. So a resumed run compares
    the same steps as the uninterrupted run and has the same bits.
    """

    name = "native"
    takes_rows = True  # they are read where they lie, without a copy of the batch

    def __init__(self, step: Step, native: NativeStep) -> None:
        self.why_not = ""
        self.taken = 0
        self._step = step
        self._native = native
        self._bar = BARS[step.config.precision]
        # Compare first if the checks were made by another version or SIMD level.
        self._made_by = (
            f"vae_fast {__version__}, torch {torch.__version__}, {library().cpu_capability()}"
        )

    @staticmethod
    def make(step: Step) -> NativeRunner | str:
        """The runner, or a sentence that says why ``step`` cannot have one."""
        config, update = step.config, step.updates[0]
        if config.precision not in BARS:
            return f"the precision is {config.precision}, and the native step supports {' and '.join(BARS)}"
        if config.precision == "bf16" and config.runner == "auto" and has_tiles():
            return "this processor's bf16 tiles (AMX) are faster, and the native step does not use them"
        if config.objective.free_bits > 0:
            return "free bits are not supported"
        if changed := replaced_in(step.model):
            return f"{changed} is not its class's"
        native = build(
            step.model,
            update.optimizer,
            average=step.average,
            clip_norm=config.optimizer.clip_norm,
            bf16=config.precision == "bf16",
        )
        return native if isinstance(native, str) else NativeRunner(step, native)

    def __call__(self, share: Share) -> tuple[Any, ...]:
        if why_not := self._refusal(share):
            return self._leave(share, why_not)
        if self._needs_check():
            return self._checked(share)
        return self._finish(self._take(share), share)

    def _needs_check(self) -> bool:
        checks = self._step.checks
        if checks.get("made_by") != self._made_by:
            checks.update(made_by=self._made_by, differed=0)
            return True
        return self._step.first_of_epoch or checks["differed"] > 0

    def _refusal(self, share: Share) -> str:
        if get_backend() == "reference":
            return "the backend is 'reference'"
        if not self._native.takes(share.images.dtype):
            return f"the images are {share.images.dtype}"
        if self._step.first_of_epoch or self.taken == 0:
            if has_hooks(self._step.model):
                return "the model's forward pass has hooks, which it cannot call"
            if not all(p.requires_grad for p in self._step.updates[0].parameters):
                return "a parameter was frozen after the start"
            if changed := replaced_in(self._step.model):
                return f"{changed} is not its class's"
        return ""

    def _take(self, share: Share, *, update: bool = True) -> StepTerms:
        values, guard = self._step.schedule_values, self._step.updates[0].guard
        images: Any = share.images
        index: Tensor | None = None
        if isinstance(images, Rows):
            images, index = images.data, images.index
        return self._native.step(
            images.contiguous(),
            share.labels,
            index=index,
            check_index=False,
            lr=float(values.lr) * share.part,
            beta=float(values.beta),
            limit=guard.limit(),
            average_weight=float(values.average_weight),
            weight=share.weight,
            part=share.part,
            update=update,
        )

    def _finish(self, terms: StepTerms, share: Share) -> tuple[Any, ...]:
        self._step.updates[0].guard.learn(terms.norm, terms.skipped)
        self._step.meter.add_numbers(terms[:3], len(share.images), terms.skipped)
        self.taken += 1
        return terms.norm, terms.skipped

    def _leave(self, share: Share, why_not: str) -> tuple[Any, ...]:
        self.why_not = why_not
        return self._step.take(share.gathered())

    # --- the check ---------------------------------------------------------------------------------

    def _checked(self, share: Share) -> tuple[Any, ...]:
        before = Memory(self._memory())
        terms = self._take(share)
        with by_one_thread():
            after, gradient = Memory(self._memory()), self._gradient / share.part
            before.restore()
            differs, loss = self._gradients_differ(share, terms, gradient)
            differs = differs or self._update_differs(before, after, gradient, loss, share.part)
            (before if differs else after).restore()
            self._native.weights_changed()
        if not differs:
            self._step.checks["differed"] = 0
            return self._finish(terms, share)
        self._step.checks["differed"] += 1
        if self._step.checks["differed"] < MOST_CONSECUTIVE:
            return self._step.take(share.gathered())
        warnings.warn(
            f"in {MOST_CONSECUTIVE} steps in a row the native step's {differs} differed from the eager step's: "
            "another runner takes the steps from here on. --runner recorded does so from the start",
            stacklevel=4,
        )
        return self._leave(share, f"its {differs} differed from the eager step's")

    def _gradients_differ(
        self, share: Share, found: StepTerms, gradient: Tensor
    ) -> tuple[str, Tensor]:
        """What differs in terms and gradients ("" if nothing) from the native step's ``found`` and
        ``gradient``, and the eager step's loss."""
        step, update = self._step, self._step.updates[0]
        terms = step.differentiate(share.gathered(), step.phases[0], update)
        loss = terms.loss.detach()
        wanted = {name: float(term.item()) for name, term in terms._asdict().items()}
        update.optimizer.zero_grad()
        scale = max(1.0, *map(abs, wanted.values()))
        for name, value in wanted.items():
            if not _near(getattr(found, name), value, self._bar.terms * scale):
                return name, loss
        length = self._gradient.norm().item()
        if not (math.isfinite(wanted["loss"]) and math.isfinite(length)):  # a step that is skipped
            return "" if found.skipped else "skipping", loss
        names = {id(p): name for name, p in step.model.named_parameters()}
        flat = self._flat
        views = (flat.views(gradient), flat.views(self._gradient))
        for p, mine, eager in zip(flat.parameters, *views, strict=True):
            bar = self._bar.gradient * eager.norm().item() + self._bar.all_gradients * length
            if not _near((mine - eager).norm().item(), 0.0, bar):
                return f"gradient of {names[id(p)]}", loss
        return "", loss

    def _update_differs(
        self, before: Memory, after: Memory, gradient: Tensor, loss: Tensor, part: float
    ) -> str:
        """What differs in weights, moments and moving average ("" if nothing) from those ``after`` the
        native step. Torch's optimizer takes its step with the native step's ``gradient``."""
        step = self._step
        self._gradient.copy_(gradient)
        step.updates[0].follow(loss, part)
        if step.average is not None:
            step.average.update(step.schedule_values.average_weight)
        for name, buffer in self._buffers().items():
            if not _updated_alike(
                after.saved_content(buffer), buffer, before.saved_content(buffer)
            ):
                return name
        return ""

    @property
    def _gradient(self) -> Tensor:
        """All gradients of the latest step, the eager or the native one."""
        gradient: Tensor | None = self._flat.whole.grad
        assert gradient is not None  # one buffer, which is kept
        return gradient

    @property
    def _flat(self) -> FlatParameters:
        flat = self._step.updates[0].flat
        assert flat is not None  # NativeStep has asked for it
        return flat

    def _buffers(self) -> dict[str, Tensor]:
        optimizer, average = self._step.updates[0].optimizer, self._step.average
        found = {"weight": optimizer._data, **optimizer._buffers}
        if average is not None:
            found["moving average"] = average._averages[-1]
        return found

    def _memory(self) -> Sequence[Tensor]:
        """All that a step changes, except metrics and the guard's list of norms."""
        step = self._step
        optimizer, guard = step.updates[0].optimizer, step.updates[0].guard
        buffers = [b for b in step.model.buffers() if b.numel()]
        averages = [] if step.average is None else step.average._averages
        return [*self._buffers().values(), optimizer._steps, guard._usual, *averages, *buffers]


@contextmanager
def by_one_thread() -> Iterator[None]:
    """Within the block, torch's ops run on the calling thread alone.

    Several threads would wait for each other after each op. On a busy machine a comparison took half
    a second that way instead of 50 ms.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _updated_alike(found: Tensor, wanted: Tensor, old: Tensor) -> bool:
    """Whether ``found`` and ``wanted`` agree as results of one step from ``old``. Values that are not
    finite must be the same in both."""
    between = wanted - old
    moved, length = between.norm().item(), wanted.norm().item()
    distance = torch.sub(found, wanted, out=between).norm().item()
    if not math.isfinite(distance + moved + length):
        same = (found == wanted) | (found.isnan() & wanted.isnan())
        distance = (found - wanted).masked_fill(same, 0.0).norm().item()
        moved, length = (t.nan_to_num(0.0, 0.0, 0.0).norm().item() for t in (wanted - old, wanted))
    return distance <= OF_UPDATE * moved + ROUNDING * length


def has_tiles() -> bool:
    """Whether the processor has bfloat16 tiles (AMX), some eight times as fast as float32."""
    return torch.cpu._is_amx_tile_supported()


def replaced_in(model: Model) -> str:
    """The name of a method that is replaced on one of the model's instances, or ""."""
    for name, module in model.named_modules():
        for key in vars(module):
            if callable(getattr(type(module), key, None)):
                return f"{name}.{key}" if name else key
    return ""


def _near(found: float, wanted: float, bar: float) -> bool:
    """Whether two values differ by at most ``bar``, or neither is finite."""
    if not math.isfinite(wanted):
        return not math.isfinite(found)
    return abs(found - wanted) <= bar
