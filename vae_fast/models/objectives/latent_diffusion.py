"""The loss of latent diffusion's autoencoders (Esser et al. 2021; Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.backend import is_transforming
from vae_fast.joined import joined_mean
from vae_fast.models.call import Call, phases_wanted
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Steps, Terms, adversarial_phases
from vae_fast.models.phases import Phase
from vae_fast.networks.discriminator import patch_discriminator
from vae_fast.networks.perceptual import make_perceptual
from vae_fast.networks.separate_gradients import call_frozen

HIGHEST = 1e4  # the bound of the adaptive weight


class LatentDiffusion(Steps):
    """sum_elements [(|x - x'| + perceptual_weight P(x, x')) / exp(s) + s] + beta KL - w D(x').

    x' is E[x | z], s a learned log-scale, P a perceptual distance, and D a patch discriminator.
    w = adversarial |d nll / d last| / |d D / d last|, with gradients of the decoder's last layer
    (Esser et al. 2021, equation 7), averaged over processes. A vq-vae has the quantiser's loss
    instead of the KL.

    Each batch runs two phases: "autoencoder", then "discriminator" with the updated autoencoder.
    Neither leaves gradients in the other's parameters. The adversarial terms begin after ``start``
    steps. Until then the discriminator is not computed and its optimizer takes no step. (After many
    steps with gradients of zero, Adam's first real ones would be several times too long.) Without
    gradients, as in validation, the loss omits D.

    Args:
        distance: "l1" or "l2", the squared error without a factor of 1/2.
        log_scale: the initial s.
        perceptual: "lpips" (the package of that name), an import path or a module
            (``networks.perceptual.make_perceptual``), or None.
        perceptual_weight: the weight of P.
        adversarial: the weight of D(x'); 0 for no discriminator.
        loss: the discriminator's loss, "hinge" or "vanilla".
        start: training steps before the discriminator begins.
        channels, layers: the discriminator's sizes; small images have fewer layers.
        discriminator_lr: the discriminator's learning rate, as a multiple of the run's.
    """

    start: int

    deterministic = None

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        distance: str = "l1",
        log_scale: float = 0.0,
        perceptual: str | nn.Module | None = None,
        perceptual_weight: float = 1.0,
        adversarial: float = 0.5,
        loss: str = "hinge",
        start: int = 50_000,
        channels: int = 64,
        layers: int = 3,
        discriminator_lr: float = 1.0,
    ) -> None:
        super().__init__()
        if distance not in ("l1", "l2"):
            raise ValueError(f"distance must be l1 or l2, got {distance!r}")
        if loss not in ("hinge", "vanilla"):
            raise ValueError(f"loss must be hinge or vanilla, got {loss!r}")
        if adversarial < 0 or start < 0:
            raise ValueError(f"adversarial and start can't be negative, got {adversarial}, {start}")
        self.distance, self.adversarial, self.loss, self.start = distance, adversarial, loss, start
        self.perceptual_weight, self.discriminator_lr = perceptual_weight, discriminator_lr
        self._counted: int | None = None  # ``steps`` as the host knows it
        self.log_scale = nn.Parameter(torch.tensor([float(log_scale)]))
        self.perceptual = make_perceptual(perceptual)
        self.discriminator: nn.Module | None = None
        if adversarial > 0:
            self.discriminator = patch_discriminator(input_shape, channels, layers)

    def phases(self, model: Model) -> list[Phase]:
        return adversarial_phases(
            model, self.discriminator, "autoencoder", self.discriminator_lr, self.has_begun
        )

    def has_begun(self) -> bool:
        """Whether ``start`` steps were taken. Waits for the device once, not at every step."""
        if self._counted is None or self.steps.is_cpu:
            self._counted = int(self.steps)
        return self._counted >= self.start

    def ranks_by_loss(self) -> bool:
        """Whether a lower validation loss means a better model. The discriminator, which that loss
        leaves out, makes it higher."""
        return self.discriminator is None or not self.has_begun()

    def count(self) -> bool:
        counted = super().count()
        if torch.compiler.is_compiling():  # a compiled graph must not depend on the number
            self._counted = None
        elif self._counted is not None:
            self._counted += counted
        return counted

    def terms(self, call: Call, phase: str | None = None) -> Terms:
        phases_wanted(phase, ("autoencoder", "discriminator"))
        truth = call.model.network_input(call.x)
        if phase == "discriminator":
            with torch.no_grad():
                made = call.mean_at(call.draw().z)
            zero = self.log_scale.new_zeros(len(truth))
            return self.of_discriminator(truth, made) * self._begun(), zero, zero
        _, z, kl = call.draw()
        made = call.mean_at(z)
        nll = self.nll(truth, made)
        loss = nll + call.beta * kl
        if self.discriminator is not None and torch.is_grad_enabled():
            begun = self._begun()
            if begun is not False:
                fooled = -call_frozen(self.discriminator, made).flatten(1).mean(1)
                weight = self.adversarial * self._weight(call.model, nll, fooled) * begun
                loss = loss + weight * fooled
            if phase is None:
                loss = loss + self.of_discriminator(truth, made.detach()) * begun
        self.count()
        return loss, nll, kl

    def _begun(self) -> bool | Tensor:
        """``has_begun``. A compiled graph serves all steps, and vmap several models, so there it is a
        tensor, and the discriminator is computed before its start."""
        if torch.compiler.is_compiling() or is_transforming():
            return torch.ge(self.steps, self.start)
        return self.has_begun()

    def nll(self, x: Tensor, made: Tensor) -> Tensor:
        """The reconstruction loss of each sample, (N,). For "l1" without P it is the NLL in nats of
        a Laplace density of scale exp(s), less log 2 per element."""
        wide = torch.promote_types(made.dtype, torch.float32)
        off = made.to(wide) - x.to(wide)
        total = (off.abs() if self.distance == "l1" else off.square()).flatten(1).sum(1)
        count = x[0].numel() if x.shape[0] > 0 else 1
        if self.perceptual is not None:
            total = total + self.perceptual_weight * count * self.perceptual(x.to(made.dtype), made)
        return total * torch.exp(-self.log_scale) + count * self.log_scale

    def of_discriminator(self, x: Tensor, made: Tensor) -> Tensor:
        """The discriminator's loss of each sample, (N,)."""
        assert self.discriminator is not None
        real, fake = self.discriminator(x), self.discriminator(made.detach())
        if self.loss == "hinge":
            each = F.relu(1 - real) + F.relu(1 + fake)
        else:
            each = F.softplus(-real) + F.softplus(fake)
        return 0.5 * each.flatten(1).mean(1)

    def _weight(self, model: Model, nll: Tensor, fooled: Tensor) -> Tensor:
        layers = [p for p in model.decoder.parameters() if p.dim() > 1 and p.requires_grad]
        if not layers:
            raise ValueError(
                "latent-diffusion weighs the discriminator by gradients of the decoder's last layer, and "
                "none of its layers is trained: set adversarial to 0, or train the decoder"
            )
        norms = [
            torch.autograd.grad(value.mean(), layers[-1], retain_graph=True)[0].detach().norm()
            for value in (nll, fooled)
        ]
        of_nll, of_fooled = (joined_mean(norm.clone()) for norm in norms)
        return (of_nll / (of_fooled + 1e-4)).clamp(0.0, HIGHEST)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._counted = None

    def train(self, mode: bool = True) -> LatentDiffusion:
        super().train(mode)
        if self.perceptual is not None:
            self.perceptual.eval()
        return self
