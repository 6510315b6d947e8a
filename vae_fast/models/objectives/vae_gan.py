"""The VAE-GAN (Larsen et al. 2016): the reconstruction loss uses a discriminator's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.models.call import Call, phases_wanted
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective, Terms
from vae_fast.models.objectives.importance import constant, encoders
from vae_fast.models.phases import Phase
from vae_fast.networks.discriminator import patch_discriminator


class VAEGAN(Objective):
    """Three phases on every batch (algorithm 1), each with its own loss.

    The encoder minimises L + beta KL, and the decoder gamma L plus its adversarial loss. The
    discriminator separates data from x', decoded from codes and from draws of the prior.
    L = |D_l(x) - D_l(x')|^2 / 2, up to a constant the NLL of a Gaussian over the discriminator's
    features before its last layer. recon is L.

    Args:
        channels, layers: the discriminator's sizes (``networks.discriminator``).
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
        self.discriminator = patch_discriminator(input_shape, channels, layers)

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

    def terms(self, call: Call, phase: str | None = None) -> Terms:
        wanted = phases_wanted(phase, ("encoder", "decoder", "discriminator"))
        truth = call.model.network_input(call.x)
        _, z, kl = call.draw()
        loss = recon = torch.zeros_like(kl)
        if phase != "discriminator":
            with torch.no_grad():
                at = self._features(truth)
        if "encoder" in wanted:
            with constant(list(call.model.decoder.parameters())):
                made = call.mean_at(z)
            recon = self._off(at, self._features(made, fixed=True))
            loss = loss + recon + call.beta * kl
        else:
            kl = torch.zeros_like(kl)
        z = z.detach()
        if "decoder" in wanted:
            made, fresh = call.mean_at(z), call.mean_at(call.from_prior(z))
            features, logits = self._judged(made, fixed=True)
            fooled = _mean(F.softplus(-logits))
            fooled = fooled + _mean(F.softplus(-self._judged(fresh, fixed=True)[1]))
            loss = loss + self.gamma * self._off(at, features) + fooled
        if "discriminator" in wanted:
            with torch.no_grad():
                made, fresh = call.mean_at(z), call.mean_at(call.from_prior(z))
            real, *fakes = (self._judged(t)[1] for t in (truth, made, fresh))
            loss = loss + _mean(F.softplus(-real)) + sum(_mean(F.softplus(t)) for t in fakes)
        return loss, recon, kl

    @staticmethod
    def _off(at: Tensor, features: Tensor) -> Tensor:
        return 0.5 * (at - features).square().flatten(1).sum(1)

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


def _mean(patches: Tensor) -> Tensor:
    return patches.flatten(1).mean(1)
