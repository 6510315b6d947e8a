"""The VAE-GAN (Larsen et al. 2016): the reconstruction loss uses a discriminator's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.models.call import Call, phases_wanted
from vae_fast.models.interface import Model, part_of
from vae_fast.models.objectives.common import Objective, Terms, rate_of
from vae_fast.models.objectives.importance import encoders
from vae_fast.models.phases import Phase
from vae_fast.networks.discriminator import patch_discriminator
from vae_fast.networks.separate_gradients import Outputs, separate_gradients


class VAEGAN(Objective):
    """Three losses, each with gradients for its own network alone.

    The encoder, with a learned prior, minimises L + beta KL, and the decoder gamma L plus its
    adversarial loss. The discriminator separates data from x', decoded from codes and from draws of
    the prior. L = |D_l(x) - D_l(x')|^2 / 2, up to a constant the NLL of a Gaussian over the
    discriminator's features before its last layer. recon is L.

    As in algorithm 1, all gradients are of one forward pass and the same weights, so one optimizer
    minimises the sum of the losses.

    Args:
        channels, layers: the discriminator's sizes (``networks.discriminator``).
        simultaneous: False trains the three networks in turn, each with its own optimizer and after
            the update of the one before.
        discriminator_lr: with ``simultaneous=False``, the discriminator's learning rate as a
            multiple of the run's.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        gamma: float = 0.05,
        channels: int = 32,
        layers: int = 3,
        simultaneous: bool = True,
        discriminator_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.gamma, self.simultaneous = gamma, simultaneous
        self.discriminator_lr = rate_of(simultaneous, discriminator_lr)
        self.discriminator = patch_discriminator(input_shape, channels, layers)

    def ranks_by_loss(self) -> bool:
        """False: recon is a distance of features that change, so losses of two epochs differ in kind."""
        return False

    def phases(self, model: Model) -> list[Phase]:
        judge = list(self.discriminator.parameters())
        # A learned prior is trained by the KL, so by the encoder's loss.
        priors = (part_of(model, "learned_prior"), part_of(model, "prior_network"))
        of_kl = [*encoders(model), *(part for part in priors if part is not None)]
        encoder = [p for part in of_kl for p in part.parameters()]
        known = {id(p) for p in judge + encoder}
        others = [p for p in model.parameters() if id(p) not in known and p.requires_grad]
        # These losses do not depend on the likelihood's own parameters.
        of_likelihood = {id(p) for p in model.likelihood.parameters()}
        decoder = [p for p in others if id(p) not in of_likelihood]
        if self.simultaneous:
            return [Phase(None, encoder + decoder + judge)]
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
        # x' with gradients for the encoder alone and for the decoder alone.
        for_encoder, for_decoder, fresh = None, None, None
        if "encoder" in wanted:
            # Parameters frozen for this pass only would not be so where blocks are recomputed.
            ((for_encoder,),) = separate_gradients(lambda t: (call.mean_at(t),), [], z)[1:]
        if phase != "encoder":
            z = z.detach()
            with torch.set_grad_enabled(torch.is_grad_enabled() and "decoder" in wanted):
                for_decoder, fresh = call.mean_at(z), call.mean_at(call.from_prior(z))

        # Each image passes the discriminator once, for all losses.
        trained = "discriminator" in wanted
        judge = list(self.discriminator.parameters()) if trained else []
        at_data, *real = separate_gradients(
            self._judged if trained else self._features, judge, truth
        )[0]
        made = [t for t in (for_encoder, for_decoder) if t is not None]
        of_made: list[Outputs] = []
        if len(made) > 1 and _draws(call.model.decoder):  # the two passes differ
            of_made.append(separate_gradients(self._features, [], made.pop(0))[1])
        judged, *others = separate_gradients(
            self._features if phase == "encoder" else self._judged, judge, *made
        )
        of_made += others
        if "encoder" in wanted:
            recon = self._feature_distance(at_data, of_made[0][0])
            loss = loss + recon + call.beta * kl
        else:
            kl = torch.zeros_like(kl)
        if fresh is not None:
            judged_fresh, (_, logits_fresh) = separate_gradients(self._judged, judge, fresh)
            if "decoder" in wanted:
                features, logits = of_made[-1]
                fooled = _mean(F.softplus(-logits)) + _mean(F.softplus(-logits_fresh))
                loss = loss + self.gamma * self._feature_distance(at_data, features) + fooled
            if trained:
                fakes = _mean(F.softplus(judged[1])) + _mean(F.softplus(judged_fresh[1]))
                loss = loss + _mean(F.softplus(-real[0])) + fakes
        return loss, recon, kl

    @staticmethod
    def _feature_distance(of_data: Tensor, features: Tensor) -> Tensor:
        return 0.5 * (of_data.detach() - features).square().flatten(1).sum(1)

    def _features(self, x: Tensor) -> Outputs:
        """The features before the discriminator's last layer."""
        # The faster layout for its convolutions. A single channel is in that layout too, but its
        # strides have to say so.
        n, c, h, w = x.shape
        if c == 1:
            x = x.reshape(n, h, w, 1).permute(0, 3, 1, 2)
        return (self.discriminator[:-1](x.contiguous(memory_format=torch.channels_last)),)

    def _judged(self, x: Tensor) -> Outputs:
        """The features before the discriminator's last layer, and its logits."""
        (features,) = self._features(x)
        return features, self.discriminator[-1](features)


def _draws(module: nn.Module) -> bool:
    """Whether dropout makes two passes of the module differ."""
    dropouts = (m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd))
    return any(m.training and m.p > 0 for m in dropouts)


def _mean(patches: Tensor) -> Tensor:
    return patches.flatten(1).mean(1)
