"""The adversarial autoencoder (Makhzani et al. 2015): a discriminator in place of the KL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.models.base import LatentModel, Posterior
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


class AAE(LatentModel):
    """z = encoder(x), made to look like draws from N(0, 1) to a discriminator.

    The encoder is deterministic (the paper's first choice) and gives latent_dim features;
    ``encode`` has logvar = -inf, as for any point.

    Three losses train three sets of parameters. ``loss(x)`` takes all three steps in one: each
    parameter's gradient comes from its own loss only, so one optimizer over everything makes the
    paper's updates, simultaneously. ``loss(x, phase=...)`` is one loss, for an engine with an
    optimizer per phase, over ``phase_parameters(phase)``.

    Args:
        discriminator: (N, latent_dim) to (N, 1), logits of "z is from the prior".
    """

    phases = ("reconstruction", "discriminator", "generator")
    is_probabilistic = False

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, discriminator: nn.Module, **options
    ) -> None:
        super().__init__(encoder, decoder, **options)
        self.discriminator = discriminator

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """What a phase's optimizer updates."""
        modules = {
            "reconstruction": (self.encoder, self.decoder),
            "discriminator": (self.discriminator,),
            "generator": (self.encoder,),
        }
        self._check_phase(phase)
        return [p for module in modules[phase] for p in module.parameters()]

    def encode(self, x: Tensor) -> Posterior:
        z = self.encoder(self.network_input(x))
        return Posterior(z, torch.full_like(z, -torch.inf))

    def loss(
        self,
        x: Tensor,
        *,
        phase: str | None = None,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
    ) -> LossOutput:
        """recon = -log p(x | z), kl = -log D(z), in nats; loss = recon + beta * kl.

        kl stands where the KL does: what the discriminator D tells z from the prior by. It is
        log 2 where D can't. The discriminator's own loss, its two cross-entropies, is in loss's
        gradient and not in its value; for ``phase="discriminator"`` it is the value too.
        """
        if free_bits > 0:
            raise ValueError("free_bits bounds a KL, and an adversarial autoencoder has none")
        if phase is not None:
            self._check_phase(phase)
        z = self.features(x)
        zero = torch.zeros(z.shape[0], 1, dtype=z.dtype, device=z.device)
        recon = kl = own = zero
        if phase in (None, "reconstruction"):
            nll = self.likelihood.nll(self.decode(z), x, reduction="none")
            recon = nll.unsqueeze(1)
        if phase in (None, "generator"):
            kl = F.softplus(-self._judge_fixed(z))
        if phase in (None, "discriminator"):
            prior = reparameterize(zero.expand_as(z), zero.expand_as(z), noise_key=noise_key)
            real, fake = self.discriminator(prior), self.discriminator(z.detach())
            own = F.softplus(-real) + F.softplus(fake)
        total = own if phase == "discriminator" else recon + beta * kl + (own - own.detach())
        return LossOutput(*(reduce(t, reduction) for t in (total, recon, kl)))

    def _judge_fixed(self, z: Tensor) -> Tensor:
        """The discriminator's logits, with gradients for z and none for its parameters."""
        constants = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, constants, (z,))

    def _check_phase(self, phase: str) -> None:
        if phase not in self.phases:
            raise ValueError(f"unknown phase {phase!r}; known: {', '.join(self.phases)}")
