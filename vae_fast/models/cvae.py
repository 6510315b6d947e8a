"""The conditional VAE (Sohn, Lee & Yan 2015): p(x | y), with y in the encoder and the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.models.conditions import Condition
from vae_fast.models.gaussian import Posterior, split_gaussian
from vae_fast.models.iwae import ImportanceWeighted
from vae_fast.models.vae import BetaVAE
from vae_fast.networks import device_and_dtype
from vae_fast.types import LossOutput


class CVAE(BetaVAE):
    """q(z | x, y), p(x | z, y), and p(z | y) or N(0, 1) as the prior.

    Args:
        encoder: (N, *input_shape) to (N, features).
        head: (N, features + condition.features) to (N, 2 * latent_dim): mu, then logvar.
        decoder: (N, latent_dim + condition.features) to the likelihood's parameters.
        condition: maps y to the networks' input.
        prior_network: (N, condition.features) to (N, 2 * latent_dim), the paper's p(z | y);
            None for N(0, 1).
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        decoder: nn.Module,
        condition: Condition,
        prior_network: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, **options)
        self.head = head
        self.condition = condition
        self.prior_network = prior_network
        self.uses_labels = condition.derive is None

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        """(y,), or the y that the condition derives from x."""
        if self.condition.derive is not None:
            return (self.condition.derive(x),)
        if y is None:
            raise ValueError("this model is conditional: give it labels or attributes y after x")
        return (y,)

    def condition_features(self, y: Tensor) -> Tensor:
        """The condition's features, (N, condition.features)."""
        return self.condition(y, device_and_dtype(self)[1])

    def _condition_or_derived(self, x: Tensor, y: Tensor | None) -> Tensor:
        """y, or what ``condition_from`` gives without it."""
        found: Tensor = self.condition_from(x, None)[0] if y is None else y
        return found

    def encode(self, x: Tensor, y: Tensor | None = None) -> Posterior:
        h, c = (
            self.encoder(self.network_input(x)),
            self.condition_features(self._condition_or_derived(x, y)),
        )
        return split_gaussian(self.head(torch.cat([h, c], dim=-1)), self.context)

    def prior(self, *condition: Tensor) -> Posterior | None:
        """p(z | y): mu and logvar, each (N, latent_dim); None for N(0, 1)."""
        if self.prior_network is None:
            return None
        return split_gaussian(self.prior_network(self.condition_features(*condition)))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]  # y comes after x
        """The likelihood's parameters for z (..., N, latent_dim) and the condition y of N
        samples."""
        c = self.condition_features(y)
        return self.run_decoder(
            torch.cat([self.check_latent(z), c.expand(*z.shape[:-1], c.shape[-1])], dim=-1)
        )

    def loss(self, x: Tensor, y: Tensor | None = None, **options: Any) -> LossOutput:  # type: ignore[override]  # y comes after x
        """E_q[-log p(x | z, y)] + beta * KL(q(z | x, y) || p(z | y)), in nats (equation 4)."""
        return super().loss(x, self._condition_or_derived(x, y), **options)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]  # y comes after x
        return super().reconstruct(x, self._condition_or_derived(x, y))

    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """E[x | z, y] for z from the prior, (n, *input_shape); y defaults to ``condition.default``,
        for labels 0, 1, ..."""
        if y is None:
            y = self.condition.default(n, device_and_dtype(self)[0])
        if y.shape[0] != n:
            raise ValueError(f"n is {n}, but y has {y.shape[0]} entries: they must be equal")
        z = self.sample_prior(n, temperature, generator, y)
        return self.likelihood.mean(self.decode(z, y))


class ConditionalIWAE(ImportanceWeighted, CVAE):
    """A CVAE trained on the K-sample bound."""
