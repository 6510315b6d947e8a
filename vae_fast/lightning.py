"""vae_fast's models in Lightning's loop.

    import lightning from vae_fast import models from vae_fast.lightning import VAEModule module =
    VAEModule(models.build("vae", (1, 28, 28)), lr=1e-3)
    lightning.Trainer(max_epochs=10).fit(module, train_loader, val_loader)

It needs lightning, which vae_fast itself does not.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vae_fast.extras import need
from vae_fast.joined import before_last_part
from vae_fast.models.interface import Model, uses_labels
from vae_fast.models.phases import phases_of
from vae_fast.train.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_fast.train.schedules import beta_at, lr_at
from vae_fast.train.setup import build_optimizer, check_optimizer
from vae_fast.types import LossOutput

lightning: Any = need("lightning", "vae_fast.lightning", "lightning")


class VAEModule(lightning.LightningModule):  # type: ignore[misc]  # found at run time
    """A model's loss, its schedule of beta and its optimizers, for ``lightning.Trainer``.

    Batches are x, (x,) or (x, y); only a model that is conditioned on labels is given y. Logged are
    train/ and val/ loss, recon and kl, in nats per sample, and beta. A model that trains several losses
    in turn (``phases()``) has an optimizer for each, in Lightning's manual optimization. ``forward`` is
    the model's reconstruction.

    Args:
        model: of ``vae_fast.models``, or with the same interface.
        lr: the peak learning rate.
        objective: beta's final value (None: 1) and schedule, and free bits.
        optimizer: name, args, groups, phases, warm-up and decay. Clipping and other schedulers are
            Lightning's own: ``Trainer(gradient_clip_val=...)``, or ``configure_optimizers`` of a subclass.

    Raises:
        ValueError: the configuration asks for something impossible, or for something that Lightning
            itself does.
    """

    def __init__(
        self,
        model: Model,
        *,
        lr: float = 1e-3,
        objective: ObjectiveConfig | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__()
        self.model: Model = model
        self.objective = ObjectiveConfig() if objective is None else objective
        self.config = TrainConfig(
            model=type(model).__name__,
            lr=lr,
            objective=self.objective,
            optimizer=OptimizerConfig() if optimizer is None else optimizer,
        )
        self.config.check_values()
        own = self.config.optimizer
        if own.clip_norm or own.skip_above or own.scheduler:
            raise ValueError(
                "optimizer.clip_norm, skip_above and scheduler are the trainer's of vae_fast: with "
                "Lightning use Trainer(gradient_clip_val=...), or a subclass's configure_optimizers"
            )
        self.beta = 1.0 if self.objective.beta is None else self.objective.beta
        self.automatic_optimization = len(phases_of(model)) == 1

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        return self.model.reconstruct(x, *condition)

    def terms(self, batch: Any, beta: float, phase: str | None = None) -> tuple[LossOutput, int]:
        """The model's loss on a batch, and how many samples it has."""
        x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        options: dict[str, Any] = {} if phase is None else {"phase": phase}
        if self.objective.free_bits > 0:
            options["free_bits"] = self.objective.free_bits
        labels: tuple[Any, ...] = ()
        if uses_labels(self.model):
            if not rest:
                raise ValueError(
                    f"{type(self.model).__name__} is conditioned on labels: batches have to be (x, y)"
                )
            labels = (rest[0],)
        return self.model(x, *labels, beta=beta, **options), len(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        beta = self._beta_now()
        self.log("train/beta", beta)
        if self.automatic_optimization:
            parts = self.trainer.accumulate_grad_batches
            steps = (batch_idx + 1) % parts == 0 or self.trainer.is_last_batch
            with before_last_part(not steps):
                terms, size = self.terms(batch, beta)
            self._log("train", terms, size)
            return terms.loss
        optimizers, schedulers = self.optimizers(), self.lr_schedulers() or []
        total: Any = None
        for phase, optimizer in zip(phases_of(self.model), optimizers, strict=True):
            optimizer.zero_grad()
            if not phase.is_due():
                # Without gradients a step changes nothing, and Lightning counts it. (A scaler of
                # float16's losses refuses it, so there it is not counted.)
                if getattr(self.trainer.precision_plugin, "scaler", None) is None:
                    optimizer.step()
                continue
            terms, size = self.terms(batch, beta, phase.name)
            self.manual_backward(terms.loss)
            optimizer.step()
            own = [t.detach() for t in terms]
            total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()
        self._log("train", LossOutput(*total), size)
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log("val", *self.terms(batch, self.beta))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._log("test", *self.terms(batch, self.beta))

    def configure_optimizers(self) -> Any:
        names = {p: name for name, p in self.model.named_parameters()}
        phases = phases_of(self.model)
        check_optimizer(self.config, names.values(), (phase.name for phase in phases))
        own, made = self.config.optimizer, []
        for phase in phases:
            parameters = [p for p in phase.parameters if p.requires_grad]
            optimizer, of_groups = build_optimizer(self.config, parameters, names, phase.name)
            scale = phase.lr * own.phases.get(phase.name or "", {}).get("lr", 1.0)
            for group, arguments in zip(optimizer.param_groups, of_groups, strict=True):
                group["lr"] *= scale * arguments.get("lr", 1.0)
            entry: dict[str, Any] = {"optimizer": optimizer}
            if own.warmup_steps > 0 or own.decay != "constant":
                total = self.trainer.estimated_stepping_batches
                if own.decay != "constant" and not math.isfinite(total):
                    raise ValueError(
                        "optimizer.decay needs the run's length: set max_epochs or max_steps"
                    )
                schedule = torch.optim.lr_scheduler.LambdaLR(
                    optimizer, partial(lr_at, own, 1.0, total_steps=total)
                )
                entry["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
            made.append(entry)
        return made[0] if len(made) == 1 else made

    def _beta_now(self) -> float:
        if self.objective.schedule == "constant":
            return self.beta
        # Lightning counts the steps of all optimizers.
        step = self.global_step // len(phases_of(self.model))
        batches = self.trainer.num_training_batches
        if self.objective.unit == "epochs" and not math.isfinite(batches):
            raise ValueError(
                "objective.unit is epochs, and the data have no length: count by steps"
            )
        parts = self.trainer.accumulate_grad_batches
        each = math.ceil(batches / parts) if math.isfinite(batches) else 1
        return beta_at(self.objective, self.beta, step, each)

    def _log(self, split: str, terms: LossOutput, size: int) -> None:
        named = zip(("loss", "recon", "kl"), terms, strict=True)
        values = {f"{split}/{name}": term.detach() for name, term in named}
        self.log_dict(values, batch_size=size, sync_dist=split != "train")
