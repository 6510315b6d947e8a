"""The adversarial autoencoder (Makhzani et al. 2015): a discriminator in place of the KL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.models.base import LatentModel, Posterior
from vae_fast.models.phases import Phase
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


class AAE(LatentModel):
    """z = encoder(x), made to look like draws from N(0, 1) to a discriminator.

    The encoder is deterministic (the paper's first choice) and gives latent_dim features;
    ``encode`` has logvar = -inf, as for any point.

    Three losses train three sets of parameters, each with its own optimizer (``phases``), on each
    batch in turn: the autoencoder reconstructs, the discriminator learns to tell z from the
    prior's draws, and the encoder learns to fool it.

    Args:
        discriminator: (N, latent_dim) to (N, 1), logits of "z is from the prior".
        generator_lr: the encoder's learning rate against the discriminator, as a part of the run's.
            As fast as the discriminator, it runs ahead of it, and round in circles.
    """

    is_probabilistic = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        *,
        generator_lr: float = 0.7,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, **options)
        if not generator_lr > 0:
            raise ValueError(f"generator_lr must be above 0, got {generator_lr}")
        self.discriminator = discriminator
        self.generator_lr = generator_lr

    def phases(self) -> list[Phase]:
        encoder, decoder, discriminator = (
            list(part.parameters()) for part in (self.encoder, self.decoder, self.discriminator)
        )
        learned = list(self.likelihood.parameters())
        return [
            Phase("reconstruction", encoder + decoder + learned),
            Phase("discriminator", discriminator),
            Phase("generator", encoder, self.generator_lr),
        ]

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
        """recon = -log p(x | z), kl = -log D(z), in nats; the sum of the phases' losses, or one.

        They are recon, -log D(prior) - log(1 - D(z)) and beta * kl. kl stands where the KL does:
        what the discriminator D tells z from the prior by, log 2 where it can't. Each phase's
        gradient is for its own parameters only, in the sum too, which one optimizer over
        everything may so minimise.
        """
        if free_bits > 0:
            raise ValueError("free_bits bounds a KL, and an adversarial autoencoder has none")
        names = [known.name for known in self.phases()]
        if phase is not None and phase not in names:
            raise ValueError(f"unknown phase {phase!r}; known: {', '.join(map(str, names))}")
        wanted = names if phase is None else [phase]
        z = self.features(x)
        recon = kl = of_discriminator = zero = z.new_zeros(z.shape[0], 1)
        if "reconstruction" in wanted:
            recon = self.likelihood.nll(self.decode(z), x, reduction="none").unsqueeze(1)
        if "discriminator" in wanted:
            prior = reparameterize(zero.expand_as(z), zero.expand_as(z), noise_key=noise_key)
            real, fake = self.discriminator(prior), self.discriminator(z.detach())
            of_discriminator = F.softplus(-real) + F.softplus(fake)
        if "generator" in wanted:
            kl = F.softplus(-self._judge_fixed(z))
        total = recon + beta * kl + of_discriminator
        return LossOutput(*(reduce(t, reduction) for t in (total, recon, kl)))

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """How often the discriminator is right, over codes and draws from the prior, (N,).

        1/2 where it can't tell them apart.
        """
        z = self.features(x)
        found_out = (self.discriminator(z) < 0).squeeze(1).float()
        believed = (self.discriminator(torch.randn_like(z)) > 0).squeeze(1).float()
        return {"discriminator_accuracy": (found_out + believed) / 2}

    def _judge_fixed(self, z: Tensor) -> Tensor:
        """The discriminator's logits, with gradients for z and none for its parameters."""
        constants = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, constants, (z,))
