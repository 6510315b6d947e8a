"""One step of a run: schedules, objective, update, metrics; nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vae_fast.joined import before_last_part
from vae_fast.models.interface import Model, uses_labels
from vae_fast.models.phases import Phase, phases_of
from vae_fast.train.average import WeightAverage
from vae_fast.train.config import TrainConfig, total_steps
from vae_fast.train.distributed import Share, World
from vae_fast.train.meter import Meter
from vae_fast.train.runners import Eager, Runner, choose
from vae_fast.train.schedules import ScheduleValues, beta_at, lr_at
from vae_fast.train.setup import check_optimizer, compile_networks, final_beta
from vae_fast.train.torch_schedule import TorchSchedule
from vae_fast.train.update import Update
from vae_fast.types import LossOutput

Differentiate = Callable[[Share, Phase, Update], LossOutput]


class Step:
    """A call with a batch updates the model once. ``meter`` accumulates the loss's terms.

    Args:
        model: its ``forward`` computes the loss. If it has ``phases()``, a step trains them in
            turn, each with its own optimizer and guard. Most models have one phase.
        steps_per_epoch: converts schedules given in epochs to steps.
    """

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        device: torch.device,
        world: World,
        steps_per_epoch: int,
    ) -> None:
        self.model = model
        phases = phases_of(model)
        alone = len(phases) == 1
        every = alone and {id(p) for p in phases[0].parameters}.issuperset(
            id(p) for p in model.parameters() if p.requires_grad
        )
        if config.accumulate > 1 and world.is_distributed:
            raise ValueError(
                f"accumulate {config.accumulate} needs a single process, and {world.size} share each "
                "batch: set it to 1, and start more processes if their shares need too much memory"
            )
        self.network = world.wrap(model, device, config, every_parameter=every)
        self.phases = phases_of(model)
        self.config = config
        self.device = device
        self.world = world
        self.steps_per_epoch = steps_per_epoch
        self.final_beta = final_beta(config)
        self.schedule: TorchSchedule | None = None
        if config.optimizer.scheduler:
            self.schedule = TorchSchedule(config, steps_per_epoch)
        self.beta, self.lr = self.final_beta, config.lr
        if config.compile:
            compile_networks(model)
        options = {"is_distributed": world.is_distributed, "alone": alone}
        names = {parameter: name for name, parameter in model.named_parameters()}
        check_optimizer(config, names.values(), (phase.name for phase in self.phases))
        self.updates = [
            Update(p.parameters, config, device, names=names, phase=p.name, **options)
            for p in self.phases
        ]
        flat = self.updates[0].flat
        self.average = WeightAverage(model, config.ema, flat) if config.ema > 0 else None
        self._settled = False  # whether the schedules have reached their final values
        self.meter = Meter(device, world)
        self.schedule_values = ScheduleValues(device)
        self.first_of_epoch = True
        self.refused: dict[str, str] = {}  # runners that this run cannot use, and why
        self.checks: dict[str, Any] = {}  # results of a runner's checks; the runner writes them
        self.runner: Runner
        self.choose_runner()

    def choose_runner(self) -> None:
        """Set ``runner``, and ``runner_is`` to a sentence that says which it is and why."""
        self.runner, self.runner_is = choose(self, self.refused)

    def __call__(self, share: Share, number: int) -> None:
        """Update the model by this rank's share of the run's batch ``number``, counted from 0."""
        self.set_schedule_values(number)
        self.first_of_epoch = number % self.steps_per_epoch == 0
        if self.updates[0].flat is None and not isinstance(self.runner, Eager):
            self.choose_runner()  # known only once there are gradients
        if not self.takes_rows:
            share = share.gathered()
        outcomes = self.runner(share)
        for update, *outcome in zip(self.updates, outcomes[::2], outcomes[1::2], strict=True):
            if outcome[1] is not None:  # the phase was due
                update.guard.record(*outcome)
        self.meter.samples += share.images.shape[0]
        if self.runner.why_not:
            self.refused[self.runner.name] = self.runner.why_not
            self.choose_runner()

    @property
    def takes_rows(self) -> bool:
        """Whether the runner gathers a batch's rows itself."""
        return getattr(self.runner, "takes_rows", False)

    def take(self, share: Share, differentiate: Differentiate | None = None) -> tuple[Any, ...]:
        """The part of a step that runs on the device, the same at every step.

        Values that differ between steps are in ``schedule_values``, on a GPU as tensors there, so a
        CUDA graph can capture and replay this. Returns, for each phase in turn, the gradient's norm
        and whether the step was skipped; the guards record both. For a phase that is not due, both
        are None.

        Args:
            differentiate: called instead of the method of that name.
        """
        differentiate = differentiate or self.differentiate
        terms: LossOutput | None = None
        skipped: Any = None
        outcomes: list[Any] = []
        for phase, update in self.each():
            if not phase.is_due():
                outcomes += [None, None]
                continue
            of_phase = differentiate(share, phase, update)
            norm, skip = update.follow(of_phase.loss, share.part)
            terms = of_phase if terms is None else _sum(terms, of_phase)
            skipped = skip if skipped is None else skipped | skip
            outcomes += [norm, skip]
        if self.average is not None:
            self.average.update(self.schedule_values.average_weight)
        assert terms is not None  # of one phase at least
        self.meter.add(terms, share.images.shape[0], skipped)
        return tuple(outcomes)

    def differentiate(self, share: Share, phase: Phase, update: Update) -> LossOutput:
        """The terms of one phase's loss; its gradients are left for ``update``."""
        if self.config.accumulate > 1:
            return self._differentiate_in_parts(share, phase, update)
        terms = self.objective(share, self.schedule_values.beta, phase.name)
        update.backward(terms.loss, share.weight)
        return terms

    def _differentiate_in_parts(self, share: Share, phase: Phase, update: Update) -> LossOutput:
        """The same for a batch taken in parts: the mean over the batch is the parts' means,
        weighted by their sizes."""
        count = len(share.images)
        rows = torch.arange(count, device=share.images.device).tensor_split(self.config.accumulate)
        terms: LossOutput | None = None
        parts = [part for part in rows if len(part)]
        for number, part in enumerate(parts, 1):
            labels = None if share.labels is None else share.labels[part]
            with before_last_part(number < len(parts)):
                one = self.objective(
                    Share(share.images[part], labels, share.weight),
                    self.schedule_values.beta,
                    phase.name,
                )
            weight = len(part) / count
            update.backward(one.loss, share.weight * weight)
            own = LossOutput(*(term.detach() * weight for term in one))
            terms = own if terms is None else _sum(terms, own)
        assert terms is not None  # a batch has a sample
        return terms

    def each(self) -> Iterator[tuple[Phase, Update]]:
        return zip(self.phases, self.updates, strict=True)

    def objective(
        self, share: Share, beta: float | Tensor | None = None, phase: str | None = None
    ) -> LossOutput:
        """The loss and its terms in nats per sample, the same in training and validation.

        For a model with phases: the loss of one phase, or the sum of all.
        """
        options: dict[str, Any] = {"beta": self.beta if beta is None else beta}
        if self.config.objective.free_bits > 0:
            options["free_bits"] = self.config.objective.free_bits
        if phase is not None:
            options["phase"] = phase
        labels = (share.labels,) if uses_labels(self.model) else ()
        with self.updates[0].objective(), self.autocast(), self.world.joint_batch(share):
            terms = self.network(share.images, *labels, **options)
        if not isinstance(terms, LossOutput):
            raise TypeError(
                f"{type(self.model).__name__}'s loss must return a LossOutput(loss, recon, kl) of "
                f"vae_fast, and returned a {type(terms).__name__}"
            )
        return terms

    def set_schedule_values(self, number: int) -> None:
        """Set beta, the learning rate and the average's weight to those of step ``number``."""
        if self._settled and self.updates[0].flat is not None:
            return
        objective, optimizer = self.config.objective, self.config.optimizer
        self.beta = beta_at(objective, self.final_beta, number, self.steps_per_epoch)
        if self.schedule is not None:
            self.lr = self.schedule.at(number)
        elif optimizer.warmup_steps > 0 or optimizer.decay != "constant":
            total = total_steps(self.config, self.steps_per_epoch)
            self.lr = lr_at(optimizer, self.config.lr, number, total)
        weight = 0.0 if self.average is None else self.average.weight(number)
        self.schedule_values.set(self.beta, self.lr, weight)
        # Every optimizer accepts a number as learning rate; FlatAdam accepts tensors as well.
        for phase, update in self.each():
            update.set_lr(phase.lr * self.lr if update.flat is None else self.schedule_values.lr)
        moves = optimizer.warmup_steps > 0 or optimizer.decay != "constant" or self.schedule
        self._settled = not moves and objective.schedule == "constant" and self.average is None

    def read_guards(self) -> dict[str, float | None]:
        """Each phase's mean gradient norm since the last read, and the number of all skipped steps.

        This waits for the device.
        """
        found = {phase.name: update.guard.read() for phase, update in self.each()}
        norms = {
            "grad_norm" if name is None else f"grad_norm_{name}": row["grad_norm"]
            for name, row in found.items()
        }
        return {**norms, "skipped": sum(row["skipped"] or 0 for row in found.values())}

    @property
    def consecutive_not_finite(self) -> int:
        """The longest series of consecutive steps in the last read in which a phase was not
        finite."""
        return max(update.guard.longest_not_finite for update in self.updates)

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def averaged(self) -> AbstractContextManager[Any]:
        """Use the weights for validation and pictures: the moving average, if there is one."""
        return nullcontext() if self.average is None else self.average.applied()

    def state_dict(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        refused = {"refused": dict(self.refused)} if self.refused else {}
        return {
            "updates": [update.state_dict() for update in self.updates],
            **average,
            **refused,
            **({"schedule": self.schedule.state_dict()} if self.schedule else {}),
            **({"checks": dict(self.checks)} if self.checks else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._settled = False  # saved optimizers contain their learning rates
        saved = state["updates"]
        if len(saved) != len(self.updates):
            raise ValueError(
                f"{len(saved)} optimizers were saved, the model has {len(self.updates)}: resume with the "
                "options of the run, or start a new one"
            )
        for update, value in zip(self.updates, saved, strict=True):
            update.load_state_dict(value)
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])
        elif self.average is not None:  # the run had no moving average so far
            self.average.restart()
        if self.schedule is not None and "schedule" in state:
            self.schedule.load_state_dict(state["schedule"])
        self.refused = dict(state.get("refused", {}))
        self.checks = dict(state.get("checks", {}))
        self.choose_runner()

    def apply_arguments(self, names: Iterable[str]) -> None:
        """Set the optimizers' arguments ``names`` to the configuration's values instead of the
        loaded ones."""
        for update in self.updates:
            update.apply_arguments(names)


def _sum(a: LossOutput, b: LossOutput) -> LossOutput:
    return LossOutput(*(x + y for x, y in zip(a, b, strict=True)))
