"""The VAE-GAN (Larsen et al. 2016): the reconstruction loss uses a discriminator's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.functional import reparameterize
from vae_fast.models.base import streams_of
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective
from vae_fast.models.objectives.importance import constant, encoders
from vae_fast.models.objectives.latent_diffusion import patches
from vae_fast.models.phases import Phase


class VAEGAN(Objective):
    """Three phases on every batch (algorithm 1), each with its own loss.

    The encoder minimises L + beta KL, and the decoder gamma L plus its adversarial loss. The
    discriminator separates data from x', decoded from codes and from draws of the prior.
    L = |D_l(x) - D_l(x')|^2 / 2, up to a constant the NLL of a Gaussian over the discriminator's
    features before its last layer. recon is L.

    Args:
        channels, layers: the discriminator's sizes (``latent_diffusion.patches``).
        discriminator_lr: the discriminator's learning rate, as a multiple of the run's.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        gamma: float = 0.05,
        channels: int = 32,
        layers: int = 3,
        discriminator_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.gamma, self.discriminator_lr = gamma, discriminator_lr
        self.discriminator = patches(input_shape, channels, layers)

    def phases(self, model: Model) -> list[Phase]:
        judge = list(self.discriminator.parameters())
        encoder = [p for part in encoders(model) for p in part.parameters()]
        known = {id(p) for p in judge + encoder}
        others = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
        # These losses do not depend on the likelihood's own parameters.
        of_decoder = {id(p) for p in model.likelihood.parameters()}
        decoder = [p for p in others if id(p) not in of_decoder]
        return [
            Phase("encoder", encoder),
            Phase("decoder", decoder),
            Phase("discriminator", judge, self.discriminator_lr),
        ]

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: Any,
        noise_key: Any,
        phase: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        names = ("encoder", "decoder", "discriminator")
        if phase not in (None, *names):
            raise ValueError(f"unknown phase {phase!r}; known: {', '.join(names)}")
        wanted = names if phase is None else (phase,)
        truth = model.network_input(x)
        drawn = model.draw(x, *condition, noise_key=noise_key)
        loss = recon = kl = torch.zeros_like(drawn.kl)
        if phase != "discriminator":
            with torch.no_grad():
                at = self._features(truth)
        if "encoder" in wanted:
            made = self._made(model, drawn.z, True, *condition)
            recon, kl = self._off(at, self._features(made, fixed=True)), drawn.kl
            loss = loss + recon + beta * kl
        if "decoder" in wanted:
            z = drawn.z.detach()
            made, fresh = (
                self._made(model, t, False, *condition) for t in (z, self._prior(z, noise_key))
            )
            features, logits = self._judged(made, fixed=True)
            off = self._off(at, features)
            fooled = F.softplus(-logits).flatten(1).mean(1)
            fooled = fooled + F.softplus(-self._judged(fresh, fixed=True)[1]).flatten(1).mean(1)
            loss = loss + self.gamma * off + fooled
        if "discriminator" in wanted:
            with torch.no_grad():
                z = drawn.z.detach()
                both = (z, self._prior(z, noise_key))
                made, fresh = (self._made(model, t, False, *condition) for t in both)
            real = F.softplus(-self._judged(truth)[1]).flatten(1).mean(1)
            for t in (made, fresh):
                real = real + F.softplus(self._judged(t)[1]).flatten(1).mean(1)
            loss = loss + real
        return loss, recon, kl

    @staticmethod
    def _off(at: Tensor, features: Tensor) -> Tensor:
        return 0.5 * (at - features).square().flatten(1).sum(1)

    def _made(self, model: Model, z: Tensor, still: bool, *condition: Tensor) -> Tensor:
        """E[x | z], scaled like ``network_input``; ``still`` keeps gradients from the decoder."""
        with constant(list(model.decoder.parameters()) if still else []):
            return model.as_input(model.likelihood.mean(model.decode(z, *condition)), z.dtype)

    def _features(self, x: Tensor, fixed: bool = False) -> Tensor:
        """The features before the discriminator's last layer; ``fixed`` keeps gradients from it."""
        x = x.contiguous(memory_format=torch.channels_last)  # the faster for its convolutions
        with constant(list(self.discriminator.parameters()) if fixed else []):
            return self.discriminator[:-1](x)

    def _judged(self, x: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """The features before the discriminator's last layer, and its logits."""
        features = self._features(x, fixed)
        with constant(list(self.discriminator.parameters()) if fixed else []):
            return features, self.discriminator[-1](features)

    @staticmethod
    def _prior(z: Tensor, noise_key: Tensor | None) -> Tensor:
        zeros = torch.zeros_like(z)
        key = None if noise_key is None else streams_of(noise_key, 1)
        return reparameterize(zeros, zeros, noise_key=key)
