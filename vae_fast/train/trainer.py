"""The engine: one model, one data set, one loop, read from top to bottom.

Batches stay uint8 up to the loss. The loss's terms add up on the device, and the host reads them
once per log interval. ``run_folder`` has a run's files, ``checkpoint`` its checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from vae_fast import files
from vae_fast.data import build_augment
from vae_fast.extras import check_extras
from vae_fast.import_paths import Trust
from vae_fast.models.interface import ranks_by_loss
from vae_fast.ops import matmul
from vae_fast.train import checkpoint, config_changes, earlier, rng, run_data, standardize
from vae_fast.train.callbacks import Callback, loggers
from vae_fast.train.checkpoint import Checkpoint, CheckpointError
from vae_fast.train.config import TrainConfig, resolve_device, total_steps
from vae_fast.train.diagnostics import diagnostics
from vae_fast.train.display import MetricsDisplay
from vae_fast.train.distributed import Share, World
from vae_fast.train.initial_weights import load_initial_weights
from vae_fast.train.latents import collapse_warning, latent_statistics
from vae_fast.train.meter import Meter
from vae_fast.train.opening import Estimate, opening
from vae_fast.train.profiling import StepProfiler, check_steps
from vae_fast.train.progress import Progress, Result, check_state
from vae_fast.train.run_folder import RunFolder
from vae_fast.train.run_pictures import draw_pictures
from vae_fast.train.setup import (
    build_model,
    check_labels,
    check_single,
    load_data,
    set_dataset_size,
)
from vae_fast.train.sharded import like, mesh_of
from vae_fast.train.step import Step
from vae_fast.train.stop import Interrupted, StopSignals
from vae_fast.train.tensorboard import TensorBoard

_OF_VALUES = (ValueError, TypeError, LookupError)


class TrainingError(RuntimeError):
    """Training cannot continue. The message says why and what to try."""


class Trainer:
    """Trains ``config.model`` on ``config.data`` into the run folder ``config.out``.

    >>> Trainer(TrainConfig(model="vae", data="fashion10k", epochs=10, out="runs/first")).fit()

    Args:
        config: the run. A value that cannot work raises ValueError here, before any work.
        train_data, val_data: used instead of ``config.data``; anything that
            ``vae_fast.data.as_data`` accepts. Give both or neither.
        folder: the folder of a run to continue (``Trainer.resume`` passes it); None makes a new
            one.
        profile: the number of steps to trace into profile.json.
        callbacks: called by the main process at the events of ``Callback``.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        train_data: Any = None,
        val_data: Any = None,
        folder: RunFolder | None = None,
        profile: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config.check()
        check_extras()
        self.world = World()
        if folder is None and self.world.is_main:
            RunFolder.check_free(config)
        self.callbacks: list[Callback] = []
        if self.world.is_main:
            ours = [Estimate(), TensorBoard(config.tensorboard), *loggers(config)]
            self.callbacks = [*ours, *callbacks]
        self.config = config
        if folder is None:
            config.model_args = earlier.written_out(str(config.model), config.model_args)
        train, val = load_data(config, train_data, val_data)
        self.device = self.world.join(resolve_device(config.device))
        if self.device.type == "cpu":  # the same library on all ranks, and in the resumed run
            is_main = self.world.is_main
            chosen = self.world.from_main(matmul.resolve(config.matmul) if is_main else None)
            config.matmul = matmul.resolve(chosen)

        begins = folder is None or not checkpoint.step_folders(folder.checkpoints)
        said = standardize.decide(config, train, begins=folder is None)
        if said and self.world.is_main:
            print(said)
        torch.manual_seed(config.seed)
        self.model = build_model(config, train.shape, self.device).to(self.device)
        train, val = check_labels(self.model, config, train, val)
        train, val = (run_data.in_support(self.model, data) for data in (train, val))
        if begins:
            standardize.fit_standardization(self.model, train)
        if config.init_from is not None and begins:
            said = load_initial_weights(self.model, config.init_from)
            if self.world.is_main:
                print(said)
        set_dataset_size(self.model, train)

        options = {"seed": config.seed, "device": self.device}
        options["binarize"] = config.binarize != "none"
        options["unit"] = run_data.needs_unit(self.model)
        options["num_workers"] = config.workers
        self.batches = self.world.batches(
            train, config.batch_size, shuffle=True, augment=build_augment(config.augment), **options
        )
        self.val_batches = self.world.batches(val, config.batch_size, shuffle=False, **options)
        check_single(self.model, config, self.batches, self.device)
        self.step = Step(self.model, config, self.device, self.world, len(self.batches))
        self.record_runner(must=folder is None)
        config = self.config
        rng.seed_rank(config.seed, self.world.rank)

        self.progress = Progress()
        self.total_steps = total_steps(config, len(self.batches))
        check_steps(profile, self.total_steps)
        self.interval_seconds = 0.0  # between the last row of metrics and the stop of a resumed run
        self.warned_of_collapse = False
        self.diagnostics: dict[str, float] = {}  # of the last validation
        self.improved = False  # the last validation is the best, and not saved yet
        self.stop = StopSignals()
        self.profile = profile if self.world.is_main else 0
        self.is_new = False  # this process made the folder, and the folder has no result yet
        if folder is None:
            made = RunFolder.create(config).path if self.world.is_main else None
            folder = RunFolder(self.world.from_main(made))
            self.is_new = self.world.is_main
        self.folder = folder
        if self.world.is_main:
            with self.discard_on_failure():
                run_data.record(self.folder.path, train, val)
                self.folder.record_environment(config, self.device, self.step.runner_is)

    @classmethod
    def resume(
        cls,
        run: str | Path,
        *,
        epochs: int | None = None,
        changes: Mapping[str, Any] | None = None,
        say: Any = print,
        trust: Trust = False,
        **options: Any,
    ) -> Trainer:
        """The trainer of the run in folder ``run``, in the state of its newest whole checkpoint.

        Args:
            epochs: the new total number of epochs, to train longer.
            changes: new values of the configuration from here on, such as {"lr": 1e-4,
                "optimizer.clip_norm": 1.0}. They are written to the run's config.yaml.
            say: receives a line for each change, each difference between config.yaml and the
                checkpoint's configuration, and each damaged checkpoint that is skipped.
            trust: which classes config.yaml may name; their code is run. False: classes of torch,
                torchvision and vae_fast. True: any class. A collection of import paths: those as
                well.
            options: ``profile``, ``callbacks``, and ``train_data`` with ``val_data`` if the run was
                started with them.

        Raises ValueError if ``changes`` or config.yaml change something that checkpoints depend on,
        such as the model.
        """
        folder = RunFolder(run)
        config, asked = folder.config(trust), dict(changes or {})
        if epochs is not None:
            asked["epochs"] = epochs
        lines = config_changes.apply(config, asked, str(run))
        if config.runner == "auto" and "runner" not in asked:
            # Configurations of older runs name no runner. These runners give the same bits as they
            # did.
            config.runner = "eager" if config.capture is False else "recorded"
        trainer = cls(config, folder=folder, **options)
        is_main = trainer.world.is_main
        if is_main:
            folder.lock()
        saved = checkpoint.load_newest(
            folder.checkpoints,
            say if is_main else lambda _: None,
            trainer.world,
            mesh_of(trainer.model),
            check_state,
        )
        if saved is not None:
            before = saved.state.get("config")
            if before is not None:
                args = earlier.of_saved(before["model"], before["model_args"])
                before = {**before, "model_args": args}
            lines += config_changes.compare(before, config, asked, str(run))
            trainer.restore(saved, say)
            if "runner" in asked:  # asked for again, even if it was refused before
                trainer.step.refused.clear()
                trainer.step.choose_runner()
                trainer.record_runner(must=True)
            trainer.step.apply_arguments(config_changes.changed_arguments(before, config))
            check_steps(trainer.profile, trainer.total_steps - trainer.progress.step)
        elif is_main:
            trainer.start_again(say)
        if is_main:
            for line in lines:
                say(line)
            if asked:
                folder.write_config(trainer.config)
        return trainer

    # --- the main loop ---------------------------------------------------------------------------

    def fit(self) -> Result:
        """Train to the last step, validating after each epoch and at the end.

        Raises Interrupted after SIGINT or SIGTERM, once everything is saved. Raises TrainingError
        after too many consecutive steps that were not finite.
        """
        config, progress = self.config, self.progress
        with ExitStack() as stack:
            stack.enter_context(self.discard_on_failure())
            stack.enter_context(self.world.fail_together(but=(Interrupted,)))
            if self.world.is_main:
                self.folder.lock()
                stack.callback(self.folder.unlock)
            self.open_displays(stack)
            profiler = stack.enter_context(StepProfiler(self.profile, self.folder.path))
            stack.enter_context(self.stop)
            self.display.say(opening(self))
            self.print_runner()
            self.interval_began = time.perf_counter() - self.interval_seconds
            for epoch in range(progress.epoch, config.epochs):
                if self.is_done() and progress.validated == progress.step:
                    break
                self.batches.set_epoch(epoch)
                self.batches.by_rows = self.step.takes_rows
                self.model.train()
                # Held: a pass that is garbage-collected loses its place in the epoch.
                shares = self.remaining_shares()
                for share in shares:
                    self.step(share, progress.step)
                    progress.step += 1
                    profiler.step()
                    for callback in self.callbacks:
                        callback.on_step(self)
                    if progress.step % config.log_every == 0:
                        self.log_training()
                    if self.checkpoint_is_due():
                        self.save()
                    if self.stop.agreed_signal(self.world, progress.step):
                        self.leave()
                    if progress.step == self.total_steps:
                        break
                self.batches.by_rows = False  # others who iterate over them want images
                self.log_training()
                progress.epoch = progress.step // len(self.batches)
                self.validate()
                for callback in self.callbacks:
                    callback.on_epoch(self, self.last_row)
                if self.checkpoint_is_due(epoch_ended=True):
                    self.save()
                if config.pictures_every and progress.epoch % config.pictures_every == 0:
                    self.draw(f"pictures/{progress.step:08d}", curves=False)
                stop = self.stop.agreed_signal(self.world, progress.step, now=True)
                if stop and not self.is_done():
                    self.leave()
            return self.result()

    def remaining_shares(self) -> Iterable[Share]:
        """The epoch's remaining batches; none if the run has ended within the epoch."""
        if self.is_done() and self.progress.step % len(self.batches):
            return ()
        return self.world.shares(self.batches)

    def is_done(self) -> bool:
        """Whether the run has taken its last step, or validation has not improved for
        ``early_stop`` epochs."""
        progress, patience = self.progress, self.config.early_stop
        return progress.step >= self.total_steps or 0 < patience <= progress.stale

    @torch.no_grad()
    def validate(self) -> None:
        """The training objective over the validation data, with the same noise every time."""
        config, step, rank = self.config, self.step, self.world.rank
        self.model.eval()
        with self.untimed() as began, step.averaged(), rng.forked(config.seed, rank):
            meter = Meter(self.device, self.world)
            for share in self.world.shares(self.val_batches):
                meter.add(step.objective(share), len(share.images))
                meter.samples += len(share.images)
            means, samples = meter.read()
            speed = samples / (time.perf_counter() - began)
            statistics = latent_statistics(self.model, self.val_batches, self.world)
            self.diagnostics = diagnostics(self.model, self.val_batches, self.world)
            self.log("val", means, speed, beta=step.beta, **self.diagnostics, **statistics)
        if not self.warned_of_collapse and step.beta >= step.final_beta and self.progress.epoch > 1:
            warning = collapse_warning(statistics)
            self.warned_of_collapse = warning is not None
            if warning is not None:
                self.display.say(warning)
        # The loss rises with beta, so the best validation is judged at the final beta.
        final = means["recon"] + step.final_beta * means["kl"]
        if step.schedule is not None:
            step.schedule.report_validation(final)
        latest = math.isfinite(final) and not ranks_by_loss(self.model)
        self.improved = final < self.progress.best or latest
        self.progress.best = final if self.improved else self.progress.best
        self.progress.validated = self.progress.step
        self.progress.stale = 0 if self.improved else self.progress.stale + 1

    @contextmanager
    def discard_on_failure(self) -> Iterator[None]:
        """Remove the new folder if the start fails: it would be taken for a run."""
        try:
            yield
        except BaseException:
            if self.is_new:
                with suppress(OSError):
                    self.folder.discard()
            raise
        self.is_new = self.is_new and self.progress.step == 0

    # --- what the loop calls ---------------------------------------------------------------------

    def log_training(self) -> None:
        """Write a row for the steps since the last one. This waits for the device."""
        if self.step.meter.samples == 0:
            return
        self.print_runner()
        means, samples = self.step.meter.read()
        norms, now = self.step.read_guards(), time.perf_counter()
        seconds, self.interval_began = now - self.interval_began, now
        self.progress.seconds += seconds
        self.progress.samples += samples
        self.log("train", means, samples / seconds, beta=self.step.beta, lr=self.step.lr, **norms)
        bad, limit = self.step.consecutive_not_finite, self.config.optimizer.max_not_finite
        if bad >= limit:
            raise TrainingError(
                f"the loss or the gradient was not finite in {bad} steps in a row (the limit is "
                f"{limit}), before step {self.progress.step}; they were skipped. Try a lower --lr "
                f"(it is {self.config.lr:g}), --optimizer.clip-norm or fp32; checkpoints from "
                f"before are in {self.folder.checkpoints}"
            )

    def record_runner(self, must: bool) -> None:
        """Write the chosen runner into the configuration, so that a resumed run uses the same one.

        Raises ValueError if another runner was asked for and ``must`` is true.
        """
        config, step = self.config, self.step
        if config.runner == "auto":  # a copy: the caller may use the configuration again
            self.config = step.config = replace(config, runner=step.runner.name)
        elif must and config.runner != step.runner.name:
            why = step.runner_is.partition(": ")[2]
            raise ValueError(
                f"the {config.runner} runner can't take this run's steps: {why}. Use --runner "
                f"{step.runner.name}, or auto"
            )
        self.said_of_runner = ""

    def print_runner(self) -> None:
        """Print which runner takes the steps, at the start and after a change."""
        if self.step.runner_is != self.said_of_runner:
            self.said_of_runner = self.step.runner_is
            self.display.say(self.step.runner_is)

    def log(
        self, split: str, means: dict[str, float], samples_per_second: float, **more: Any
    ) -> None:
        row = {
            "epoch": -(-self.progress.step // len(self.batches)),  # the last one begun, from 1
            "step": self.progress.step,
            "split": split,
            **means,
            "seconds": round(self.progress.seconds, 4),
            "samples_per_second": round(samples_per_second, 1),
            **more,
        }
        self.progress.rows += 1
        if self.world.is_main:
            self.last_row = row = self.folder.append_metrics(row)
            self.display.show(row)
            for callback in self.callbacks:
                callback.on_row(self, row)

    def checkpoint_is_due(self, epoch_ended: bool = False) -> bool:
        """At intervals, at the best, and at the end of the run."""
        when, progress = self.config.checkpoint, self.progress
        if not epoch_ended:
            return when.every_steps > 0 and progress.step % when.every_steps == 0
        every_epoch = when.every_epochs > 0 and progress.epoch % when.every_epochs == 0
        return every_epoch or self.improved or self.is_done()

    def save(self) -> None:
        """Write a checkpoint of this step, and point ``best`` at it if it is the best."""
        folder, state = self.folder.checkpoints, self.state()
        with self.untimed():
            weights = self.model.state_dict()
            say = self.display.say
            saved = checkpoint.save(folder, self.progress.step, weights, state, self.world, say)
            if self.world.is_main:
                if self.improved:
                    checkpoint.point(folder, "best", saved, say)
                checkpoint.prune(folder, self.config.checkpoint.keep, say)
            for callback in self.callbacks:
                callback.on_checkpoint(self, saved)
        self.improved = False

    def leave(self) -> NoReturn:
        """Write a checkpoint and raise Interrupted."""
        self.save()
        raise Interrupted(cast(int, self.stop.asked), self.progress.step, self.folder.path)

    @contextmanager
    def untimed(self) -> Iterator[float]:
        """Leave the time of this block out of the training time; gives the time at its start."""
        began = time.perf_counter()
        yield began
        self.interval_began += time.perf_counter() - began

    def open_displays(self, stack: ExitStack) -> None:
        """Start the progress display and the callbacks on the main rank."""
        done, is_main = self.progress.step, self.world.is_main
        self.display = stack.enter_context(MetricsDisplay(done, self.total_steps, visible=is_main))
        for callback in self.callbacks:
            callback.on_start(self)
            stack.push(partial(self.notify_end, callback))

    def notify_end(self, callback: Callback, _: Any, error: BaseException | None, __: Any) -> None:
        """Tell a callback that training has ended, with the exception that ended it, if any."""
        callback.on_end(self, error)

    def draw(self, prefix: str, curves: bool) -> list[Path]:
        """Draw the run's pictures under names beginning with ``prefix``."""
        with self.untimed(), self.step.averaged():
            paths = draw_pictures(self, prefix, curves)
        for path in paths:
            for callback in self.callbacks:
                try:
                    callback.on_picture(self, path)
                except Exception as error:  # noqa: BLE001 (a picture costs no run)
                    files.warn(f"{type(callback).__name__} can't take {path}: {error!r}")
        return paths

    def result(self) -> Result:
        """The result of the last validation, with the pictures, which this draws."""
        row = self.last_validation()
        if row is None:  # kept even if metrics.jsonl could not be written
            self.validate()
            row = self.last_validation()
        assert row is not None  # the one just made
        speed = self.progress.samples / self.progress.seconds
        self.display.say("Drawing the pictures")
        paths = self.draw("", curves=True)
        if row["loss"] is None:
            raise TrainingError(
                f"the run has ended with a validation loss that is not finite. Try a lower --lr (it "
                f"is {self.config.lr:g}) or --optimizer.clip-norm; the run's files are in {self.folder.path}"
            )
        return Result(row["loss"], row["recon"], row["kl"], speed, paths, self.diagnostics)

    def last_validation(self) -> dict[str, Any] | None:
        has_rows = (self.folder.path / "metrics.jsonl").exists()
        rows = self.folder.metrics() if has_rows else []
        rows = [row for row in rows if row["split"] == "val"]
        return rows[-1] if rows else None

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, except the weights."""
        return {
            "config": config_changes.plain(self.config),
            "input_shape": list(self.model.input_shape),
            "reached": asdict(self.progress),
            "interval_seconds": time.perf_counter() - self.interval_began,
            "is_best": self.improved,
            "step": self.step.state_dict(),
            "batches": self.batches.state_dict(),
            "ranks": self.world.gather(
                {"rng": rng.state(self.device), "meter": self.step.meter.state_dict()}
            ),
        }

    def start_again(self, say: Any = print) -> None:
        """Say that the run starts again, and start a new metrics.jsonl."""
        say("the run was stopped before its first checkpoint, so it starts from the beginning")
        # A run that has validated had a checkpoint, so that checkpoint is missing.
        validated = self.last_validation() is not None
        self.folder.keep_metrics(0, to_be_written_again=not validated, say=say)

    def restore(self, saved: Checkpoint, say: Any = print) -> None:
        """The inverse of ``state``: continue from ``saved``, and set aside what came after it.

        Args:
            say: receives a line for each thing that is set aside.
        """
        ranks, meter, rank = saved.state["ranks"], self.step.meter, self.world.rank
        try:
            own = self.model.state_dict()
            weights = {k: like(w, own[k]) if k in own else w for k, w in saved.weights.items()}
            self.model.load_state_dict(weights)
            self.step.load_state_dict(saved.state["step"])
            self.batches.load_state_dict(saved.state["batches"])
            if len(ranks) == self.world.size:
                rng.restore(ranks[rank]["rng"], self.device)
                meter.load_state_dict(ranks[rank]["meter"])
            else:
                # The number of ranks has changed: each draws new noise, and the main one has all
                # ranks' sums.
                rng.seed_rank(self.config.seed, rank, saved.state["reached"]["step"])
                if self.world.is_main:
                    meter.load_state_dict(meter.of_all([saw["meter"] for saw in ranks]))
        except (RuntimeError, ArithmeticError, AttributeError, *_OF_VALUES) as error:
            raise CheckpointError(
                f"{saved.path} is of another model, data or configuration: {error}"
            ) from error
        self.progress = Progress(**saved.state["reached"])
        self.interval_seconds = saved.state["interval_seconds"]
        if self.world.is_main:
            folder, is_best = saved.path, saved.state["is_best"]
            unused = checkpoint.later_checkpoints(folder)
            self.progress.rows = self.folder.keep_metrics(
                self.progress.rows, to_be_written_again=not unused, say=say
            )
            checkpoint.rewind_to(folder, is_best=is_best, say=say)
        if not self.world.on_main(self.has_best):
            self.progress.best = math.inf

    def has_best(self) -> bool:
        try:
            return checkpoint.pointed_folder(self.folder.checkpoints, "best") is not None
        except CheckpointError:  # the next best checkpoint replaces it
            return False
