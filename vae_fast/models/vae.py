"""The variational autoencoder (Kingma & Welling 2014).

The beta-VAE (Higgins et al. 2017) is this model with beta != 1 in the loss.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import gaussian_kl, reparameterize
from vae_fast.models.base import LatentModel
from vae_fast.models.call import Call
from vae_fast.models.divergence import free_bits_kl, kl_by_dimension
from vae_fast.models.gaussian import (
    Draw,
    Posterior,
    WeightedSamples,
    log_densities,
    log_density,
    split_gaussian,
    standard_log_density,
)
from vae_fast.types import LossOutput


class BetaVAE(LatentModel):
    """q(z | x) = N(mu(x), exp(logvar(x))), p(x | z) any likelihood, p(z) = N(0, 1) or learned.

    The encoder gives 2 * latent_dim features: mu, then logvar. ``condition`` is empty except in
    conditional models.

    Args:
        posterior: another q(z | x) with these features as parameters, from
            ``vae_fast.models.posteriors``; None for the Gaussian.
    """

    posterior: Any  # of vae_fast.models.posteriors, or None

    takes_objective = takes_posterior = True

    def __init__(
        self, *networks: nn.Module, posterior: nn.Module | None = None, **options: Any
    ) -> None:
        super().__init__(*networks, posterior=posterior, **options)
        self.has_own_space = posterior is not None and bool(posterior.has_own_space)
        if posterior is not None and self.learned_prior is not None and self.has_own_space:
            raise ValueError(
                f"a {posterior.name} posterior has a space and a prior of its own: leave the prior "
                "standard"
            )
        wants = "any" if self.objective is None else self.objective.posteriors
        refused = wants == "gaussian" or (wants == "flat" and self.has_own_space)
        if posterior is not None and refused:
            raise ValueError(
                f"{self.objective.name} is not defined for the posterior {posterior.name}: it takes "
                + ("the Gaussian" if wants == "gaussian" else "the Gaussian and flows")
            )
        self.posterior = posterior
        self.divides_kl = self.divides_kl and posterior is None

    def encode(self, x: Tensor) -> Posterior:
        return split_gaussian(self.encoder(self.network_input(x)), self.context)

    @property
    def context(self) -> int:
        """The number of encoder features that condition the posterior's flow."""
        return 0 if self.posterior is None else self.posterior.context

    def features(self, x: Tensor, *condition: Tensor) -> Tensor:
        q = self.encode(x, *condition)
        return q.mu if self.posterior is None else self.posterior.center(q)

    def sample_posterior(self, x: Tensor, *condition: Tensor) -> Tensor:
        return self.draw(x, *condition).z

    def draw(self, x: Tensor, *condition: Tensor, noise_key: Tensor | None = None) -> Draw:
        """q(z | x), one z and its KL for each sample."""
        return self.drawn_from(self.encode(x, *condition), self.prior(*condition), noise_key)

    def drawn_from(self, q: Posterior, p: Posterior | None, noise_key: Tensor | None) -> Draw:
        """``draw`` for the results of ``encode`` and ``prior``."""
        if self.posterior is None and self.learned_prior is None:
            z = reparameterize(*q, noise_key=noise_key)
            return Draw(q, z, gaussian_kl(*q, *(p or ()), reduction="none"))
        z, log_q = self.drawn(q, noise_key=noise_key)
        kl = None if self.posterior is None else self.posterior.kl(q)
        return Draw(q, z, log_q - self.log_prior(z, p) if kl is None else kl)

    def drawn(self, q: Posterior, *, constant: bool = False, **noise: Any) -> tuple[Tensor, Tensor]:
        """z ~ q(z | x), (N, D) or (K, N, D), and log q(z | x), constant in q's own parameters if
        ``constant``, which only the Gaussian can be. ``noise``: num_samples and noise_key."""
        if self.posterior is not None:
            if constant:
                raise ValueError(
                    f"dreg is for Gaussian posteriors, not for {self.posterior.name}: leave it false"
                )
            drawn: tuple[Tensor, Tensor] = self.posterior.sample(q, **noise)
            return drawn
        z = reparameterize(*q, **noise)
        density_of = Posterior(q.mu.detach(), q.logvar.detach()) if constant else q
        return z, log_density(z, *density_of)

    def prior_from(
        self, eps: Tensor, source: torch.Generator | Tensor | None = None, *condition: Tensor
    ) -> Tensor:
        if self.has_own_space:
            return self.posterior.sample_prior(eps)
        if self.learned_prior is None and (p := self.prior(*condition)) is not None:
            return p.mu + torch.exp(0.5 * p.logvar) * eps
        return super().prior_from(eps, source)

    def log_prior(self, z: Tensor, p: Posterior | None = None) -> Tensor:
        """log p(z) in nats, (...,) for z (..., latent_dim); p is the result of ``prior``."""
        if self.learned_prior is not None:
            return self.learned_prior.log_density(z, self.encode)
        if self.has_own_space:
            return self.posterior.log_prior(z)
        return standard_log_density(z) if p is None else log_density(z, *p)

    def prior(self, *condition: Tensor) -> Posterior | None:
        """p(z) if it is a Gaussian that depends on a condition. None: N(0, 1) or
        ``learned_prior``."""
        return None

    def own_loss(self, call: Call) -> LossOutput:
        """E_q[-log p(x | z)] + beta * KL(q(z | x) || p(z)), in nats, from one z per sample.

        For beta = 1 it is the negative ELBO (equation 10). With a learned prior or a posterior
        without a closed form, log q(z | x) - log p(z) at that z estimates the KL.
        """
        x, condition, beta, free_bits, reduction, noise_key = call[1:]
        if self.posterior is not None or self.learned_prior is not None:
            self._refuse_free_bits(call)
            _, z, kl = call.draw()
            recon = call.nll_at(z)
            return call.output(recon + beta * kl, recon, kl)
        q, p = self.encode(x, *condition), self.prior(*condition)
        z = reparameterize(*q, noise_key=noise_key)
        params = self.decode(z, *condition)
        if p is None and free_bits == 0:
            return self.likelihood.loss(params, x, *q, beta=beta, reduction=reduction)
        recon = self.likelihood.nll(params, x, reduction=reduction)
        if free_bits > 0:
            kl = free_bits_kl(q, p, free_bits, reduction=reduction)
        else:
            kl = gaussian_kl(*q, *(p or ()), reduction=reduction)
        return LossOutput(recon + beta * kl, recon, kl)

    def _refuse_free_bits(self, call: Call) -> None:
        if self.posterior is not None:
            call.refuse(free_bits=f"bounds a Gaussian's KL, not a {self.posterior.name}'s")
        if self.learned_prior is not None:
            call.refuse(
                free_bits="bounds the KL of each dimension, and a learned prior's does not divide so"
            )

    def weighted_samples(
        self,
        x: Tensor,
        *condition: Tensor,
        num_samples: int,
        beta: float | Tensor = 1.0,
        constant_posterior: bool = False,
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> WeightedSamples:
        """K samples of z ~ q(z | x) with log w = log p(x | z) + beta * (log p(z) - log q(z | x)).

        With ``constant_posterior``, gradients reach q's parameters through z but not through log q,
        as doubly reparameterised gradients require. ``options`` go to ``encode``.
        """
        q, p = self.encode(x, *condition, **options), self.prior(*condition)
        z, log_q = self.drawn(
            q, num_samples=num_samples, noise_key=noise_key, constant=constant_posterior
        )
        nll = self.nll_of_draws(x, z, *condition, **options, **self.nll_options(noise_key))
        log_p = self.log_prior(z, p)
        if self.posterior is None and self.learned_prior is None:
            kl = gaussian_kl(*q, *(p or ()), reduction="none")
        else:
            kl = (log_q - log_p).mean(0)
        return WeightedSamples(beta * (log_p - log_q) - nll, nll, kl, z)

    def nll_of_draws(self, x: Tensor, z: Tensor, *condition: Tensor) -> Tensor:
        """-log p(x | z_k), (K, N), in nats, for z (K, N, D)."""
        return self.likelihood.nll_samples(self.decode(z, *condition), x)

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The objective's diagnostics of z, if it has any."""
        if not hasattr(self.objective, "diagnostics"):
            return {}
        return self.objective.diagnostics(self.sample_posterior(x, *self.condition_from(x, y)))

    def kl_per_dimension(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The batch's mean KL of each latent dimension, (latent_dim,), in nats.

        With a learned prior: the KL to that dimension's marginal, from one z of each sample.
        """
        q, p = self.encode(x, *condition), self.prior(*condition)
        if self.learned_prior is None:
            return kl_by_dimension(q, p) / x.shape[0]
        z = reparameterize(*q)
        log_q = log_densities(z, *q)
        return (log_q - self.learned_prior.log_marginals(z, self.encode)).mean(0)


def __getattr__(name: str) -> type[BetaVAE]:
    if name == "VAE":
        warnings.warn(
            "vae_fast.models.VAE is now vae_fast.models.BetaVAE; the old name goes in version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return BetaVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
