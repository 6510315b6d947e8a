"""The base of objectives: losses in place of a model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.models.interface import Model
from vae_fast.models.joined import WideBuffers
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


class Objective(WideBuffers):
    """``forward(model, x, *condition, ...)`` is the model's loss. Terms are in nats per sample.

    ``of_batches``: the loss is defined on a batch only. ``deterministic``: whether it is for models
    whose z has no density; None: for both kinds.
    """

    of_batches = False
    deterministic: bool | None = False

    def forward(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> LossOutput:
        if free_bits > 0:
            raise ValueError(f"free_bits bounds the ELBO's KL: leave it 0 for {self.name}")
        if self.of_batches and reduction == "none":
            raise ValueError(f"{self.name} is defined on a batch: use batchmean or sum")
        terms = self.terms(model, x, *condition, beta=beta, noise_key=noise_key, **options)
        # (N, 1): reduce would read (N,) as one sample with N features.
        return LossOutput(*(reduce(t.unsqueeze(1), reduction) for t in terms))

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """loss, recon and kl of each sample, (N,). ``options``: beta, noise_key and the loss's."""
        raise NotImplementedError(f"{type(self).__name__} must implement terms(model, x)")

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
        """The fraction of ``whole`` steps taken, in [0, 1]; in training each call counts a step."""
        now = (self.steps / max(whole, 1)).clamp(max=1.0)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.steps.add_(1)
        return now


def fixed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)``, with gradients for the inputs but not for its parameters."""
    constants = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.functional_call(module, constants, inputs)
