"""The adversarial autoencoder (Makhzani et al. 2015): a discriminator in place of the KL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.models.base import Deterministic
from vae_fast.models.call import Call, phases_wanted
from vae_fast.models.phases import Phase
from vae_fast.networks.separate_gradients import call_frozen
from vae_fast.types import LossOutput


class AAE(Deterministic):
    """z = encoder(x); adversarial training matches the distribution of z to the prior N(0, 1).

    The encoder is deterministic, the paper's first option.

    Each batch trains three sets of parameters in turn, each with its own optimizer (``phases``):
    the encoder and decoder reconstruct, the discriminator learns to tell z from draws of the prior,
    and the encoder learns to fool the discriminator.

    Args:
        discriminator: (N, latent_dim) to (N, 1), logits of "z is from the prior".
        generator_lr: the encoder's learning rate against the discriminator, as a multiple of the
            run's. At 1 the encoder outruns the discriminator, and training oscillates.
        simultaneous: all three losses are of one encoder pass and the same weights, and one
            optimizer minimises their sum, as in pythae and many scripts. The paper alternates. Here
            the encoder moves once, by the sum of its two gradients, and ``generator_lr`` is not
            used; the discriminator sees codes from before the update, and the encoder the
            discriminator from before its own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        *,
        generator_lr: float = 0.7,
        simultaneous: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, **options)
        if not generator_lr > 0:
            raise ValueError(f"generator_lr must be above 0, got {generator_lr}")
        self.discriminator = discriminator
        self.generator_lr, self.simultaneous = generator_lr, simultaneous

    def phases(self) -> list[Phase]:
        encoder, decoder, discriminator = (
            list(part.parameters()) for part in (self.encoder, self.decoder, self.discriminator)
        )
        learned = list(self.likelihood.parameters())
        if self.simultaneous:
            return [Phase(None, encoder + decoder + learned + discriminator)]
        return [
            Phase("reconstruction", encoder + decoder + learned),
            Phase("discriminator", discriminator),
            Phase("generator", encoder, self.generator_lr),
        ]

    def own_loss(self, call: Call, phase: str | None = None) -> LossOutput:
        """The loss of one phase, or the sum of all three, in nats.

        recon = -log p(x | z). kl = -log D(z) takes the place of the KL; it is log 2 where the
        discriminator D cannot tell z from the prior. The phases' losses are recon,
        -log D(prior) - log(1 - D(z)) and beta * kl. Each loss has gradients for its own phase's
        parameters only, so one optimizer over all parameters may minimise the sum. An unknown phase
        and free_bits > 0 raise ValueError.
        """
        call.refuse(free_bits="bounds a KL, and an adversarial autoencoder has none")
        wanted = phases_wanted(phase, ("reconstruction", "discriminator", "generator"))
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted != ("discriminator",)):
            z = self.features(call.x, *call.condition)
        recon = kl = of_discriminator = z.new_zeros(z.shape[0])
        if "reconstruction" in wanted:
            recon = call.nll_at(z)
        if "discriminator" in wanted:
            prior = call.normals(z, stream=0)
            real, fake = self.discriminator(torch.cat([prior, z.detach()])).split([z.shape[0]] * 2)
            of_discriminator = (F.softplus(-real) + F.softplus(fake)).squeeze(1)
        if "generator" in wanted:
            kl = F.softplus(-call_frozen(self.discriminator, z)).squeeze(1)
        return call.output(recon + call.beta * kl + of_discriminator, recon, kl)

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The discriminator's accuracy over codes and draws from the prior, (N,); 1/2 is chance."""
        z = self.features(x)
        found_out = (self.discriminator(z) < 0).squeeze(1).float()
        believed = (self.discriminator(torch.randn_like(z)) > 0).squeeze(1).float()
        return {"discriminator_accuracy": (found_out + believed) / 2}
