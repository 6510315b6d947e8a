"""The base of objectives: losses in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.joined import WideBuffers, more_of_batch_follows
from vae_fast.models.call import Call
from vae_fast.models.interface import Model
from vae_fast.models.phases import Phase
from vae_fast.types import LossOutput

Terms = tuple[Tensor, Tensor, Tensor]  # loss, recon and kl of each sample, (N,)


class Objective(WideBuffers):
    """``forward(call)`` is the loss of a model's call. Terms are in nats per sample.

    ``of_batches``: the loss is defined on a batch only. ``deterministic``: whether it is for models
    whose z has no density; None: for both kinds. ``posteriors``: "any", "flat" for those without a
    space of their own, or "gaussian".
    """

    of_batches = False
    posteriors = "any"
    deterministic: bool | None = False

    def forward(self, call: Call, **options: Any) -> LossOutput:
        call.refuse(
            free_bits=f"bounds the ELBO's KL, and {self.name} is another loss",
            none=self.name if self.of_batches else None,
        )
        return call.output(*self.terms(call, **options))

    def terms(self, call: Call, *arguments: Any, **options: Any) -> Terms:
        """loss, recon and kl of each sample, (N,). ``options`` are the loss's own."""
        raise NotImplementedError(f"{type(self).__name__} must implement terms(call)")

    @property
    def name(self) -> str:
        return type(self).__name__


class Steps(Objective):
    """An objective that counts training steps, in a buffer that checkpoints save."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def part(self, whole: int) -> Tensor:
        """The fraction of ``whole`` steps taken, in [0, 1]; in training each call counts a step, or
        each batch, if batches are taken in parts."""
        now = (self.steps / max(whole, 1)).clamp(max=1.0)
        self.count()
        return now

    def count(self) -> bool:
        """Count a step, in training; returns whether it did."""
        counts = self.training and torch.is_grad_enabled() and not more_of_batch_follows()
        if counts:
            with torch.no_grad():
                self.steps.add_(1)
        return counts


def adversarial_phases(
    model: Model,
    judge: nn.Module | None,
    name: str,
    lr: float,
    is_due: Callable[[], bool] | None = None,
) -> list[Phase]:
    """Two phases: ``name`` trains all parameters but the judge's, and "discriminator" the judge's, at
    ``lr`` times the run's rate, if ``is_due()``. Without a judge there is one phase."""
    own = [] if judge is None else list(judge.parameters())
    known = {id(p) for p in own}
    others = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
    if not own:
        return [Phase(None, others)]
    of_judge = Phase("discriminator", own, lr)
    return [Phase(name, others), of_judge if is_due is None else of_judge._replace(is_due=is_due)]


def rate_of(simultaneous: bool, discriminator_lr: float) -> float:
    """``discriminator_lr``; ValueError if the losses share one optimizer, which has one rate."""
    if simultaneous and discriminator_lr != 1.0:
        raise ValueError(
            f"discriminator_lr {discriminator_lr} needs an optimizer of its own, and simultaneous "
            "losses share one: set simultaneous to false, or give the rate in optimizer.groups"
        )
    return discriminator_lr
