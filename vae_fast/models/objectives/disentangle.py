"""Objectives for disentangled latent dimensions: FactorVAE, DIP-VAE I and II."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.functional import reparameterize
from vae_fast.functional.checks import check_counts
from vae_fast.models.call import Call, phases_wanted
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective, Terms, adversarial_phases, rate_of
from vae_fast.models.phases import Phase
from vae_fast.networks import mlp
from vae_fast.networks.separate_gradients import call_frozen


class Factor(Objective):
    """-log p(x | z) + beta KL + gamma TC, where a discriminator D estimates the total correlation
    TC = log D(z) - log(1 - D(z)) (Kim & Mnih 2018, equation 2 and algorithm 2).

    Two phases train the model and D. D learns to separate z of one half of the batch from z of the
    other half with each dimension shuffled independently.

    Args:
        hidden: hidden sizes of the discriminator.
        simultaneous: both losses are of one z of each sample and the same weights, and one
            optimizer minimises their sum. It saves an encoder pass; otherwise D sees codes of the
            model as just updated.
        discriminator_lr: the discriminator's learning rate, as a multiple of the run's.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        gamma: float = 35.0,
        hidden: tuple[int, ...] = (1000,) * 5,
        simultaneous: bool = False,
        discriminator_lr: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts("hidden", hidden)
        self.gamma, self.simultaneous = gamma, simultaneous
        self.discriminator_lr = rate_of(simultaneous, discriminator_lr)
        self.discriminator = mlp([latent_dim, *hidden, 2], activation="leaky_relu")

    def phases(self, model: Model) -> list[Phase]:
        found = adversarial_phases(model, self.discriminator, "model", self.discriminator_lr)
        if self.simultaneous:
            return [Phase(None, [p for phase in found for p in phase.parameters])]
        return found

    def terms(self, call: Call, phase: str | None = None) -> Terms:
        wanted = phases_wanted(phase, ("model", "discriminator"))
        with torch.set_grad_enabled(torch.is_grad_enabled() and "model" in wanted):
            _, z, kl = call.draw()
        loss = recon = torch.zeros_like(kl)
        if "model" in wanted:
            logits = call_frozen(self.discriminator, z)
            recon = call.nll_at(z)
            loss = recon + call.beta * kl + self.gamma * (logits[:, 0] - logits[:, 1])
        else:
            kl = torch.zeros_like(kl)
        if "discriminator" in wanted:
            loss = loss + self.of_discriminator(z.detach(), call.stream(1))
        return loss, recon, kl

    def of_discriminator(self, z: Tensor, noise_key: Tensor | None = None) -> Tensor:
        """The discriminator's loss, half the sum of the mean cross-entropies of joint and shuffled
        z, in nats, repeated for each sample: (N,)."""
        n = z.shape[0]
        half = n // 2 if n > 1 else n
        joint, other = z[:half], z[n - half :]
        zeros = torch.zeros_like(other, dtype=torch.float32)
        order = reparameterize(zeros, zeros, noise_key=noise_key).argsort(0)
        shuffled = other.gather(0, order)
        real, fake = self.discriminator(torch.cat([joint, shuffled])).split([joint.shape[0]] * 2)
        each = 0.5 * (F.softplus(real[:, 1] - real[:, 0]) + F.softplus(fake[:, 0] - fake[:, 1]))
        return each.mean().expand(n) if n > 0 else each

    def diagnostics(self, z: Tensor) -> dict[str, Tensor]:
        """The discriminator's estimate of the total correlation, per sample, in nats."""
        logits = self.discriminator(z)
        return {"total_correlation": logits[:, 0] - logits[:, 1]}


class DIP(Objective):
    """The negative ELBO plus off sum_{i != j} Cov_ij^2 + own sum_i (Cov_ii - 1)^2.

    Kumar et al. 2018. Cov is the covariance of the posterior's means for kind 1 (equation 6), and
    of z, which includes the posterior's variances, for kind 2 (equation 7). Each process uses its
    own part of the batch.
    """

    of_batches, posteriors = True, "gaussian"

    def __init__(self, *, kind: int = 1, off: float = 10.0, own: float | None = None) -> None:
        super().__init__()
        if kind not in (1, 2):
            raise ValueError(f"kind must be 1 or 2, for DIP-VAE-I or II, got {kind}")
        # Kumar et al. 2018, section 4: lambda_d = 10 lambda_od in DIP-VAE-I, lambda_od in II.
        self.kind, self.off = kind, off
        self.own = (10.0 if kind == 1 else 1.0) * off if own is None else own

    def terms(self, call: Call) -> Terms:
        q, z, kl = call.draw()
        recon = call.nll_at(z)
        mu = q.mu.to(recon.dtype)
        centred = mu - mu.mean(0)
        with torch.autocast(mu.device.type, enabled=False):
            covariance = centred.t() @ centred / max(mu.shape[0], 1)
        diagonal = covariance.diagonal()
        outside = covariance.square().sum() - diagonal.square().sum()
        if self.kind == 2:
            diagonal = diagonal + torch.exp(q.logvar.to(recon.dtype)).mean(0)
        penalty = self.off * outside + self.own * (diagonal - 1).square().sum()
        return recon + call.beta * kl + penalty, recon, kl
