"""Priors with parameters of their own, for any model with q(z | x) = N(mu(x), exp(logvar(x))).

Each is a mixture of K Gaussians, whose density is one native call without the (N, K, D) tensor. A
mixture has no KL in closed form: log q(z | x) - log p(z) at the sampled z stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.functional import mixture_log_density

PRIORS = ("standard", "mixture", "vamp")


class Components(NamedTuple):
    """A mixture of K diagonal Gaussians: (K, D), (K, D) and (K,); logits=None: equal weights."""

    mu: Tensor
    logvar: Tensor
    logits: Tensor | None


class MixturePrior(nn.Module):
    """p(z) = sum_k w_k N(mu_k, exp(logvar_k)), all of it learned.

    With one component, a learned Gaussian.

    Args:
        latent_dim: the size of z.
        components: K. Means start as draws from N(0, 1), variances at 1, weights equal.
    """

    def __init__(self, latent_dim: int, *, components: int = 100) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a prior's components must be at least 1, got {components}")
        self.mu = nn.Parameter(torch.randn(components, latent_dim))
        self.logvar = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def components(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Components:
        """The Gaussians; ``encode`` is the model's, from data to mu and logvar."""
        return Components(self.mu, self.logvar, self.logits)

    def log_density(self, z: Tensor, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """log p(z) in nats, (...,) for z (..., D)."""
        flat = z.reshape(-1, z.shape[-1])
        return mixture_log_density(flat, *self.components(encode)).view(z.shape[:-1])

    def log_marginals(self, z: Tensor, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """log p(z_d) of each dimension in nats, (N, D) for z (N, D)."""
        mu, logvar, logits = self.components(encode)
        columns = zip(z.split(1, 1), mu.split(1, 1), logvar.split(1, 1), strict=True)
        return torch.stack([mixture_log_density(*c, logits) for c in columns], dim=1)

    def sample(
        self,
        eps: Tensor,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One z for each row of eps (n, D), draws from N(0, 1), or less for less variety."""
        mu, logvar, logits = self.components(encode)
        weights = torch.ones_like(mu[:, 0]) if logits is None else logits.softmax(0)
        k = torch.multinomial(weights.float(), len(eps), replacement=True, generator=generator)
        return mu[k] + torch.exp(0.5 * logvar[k]) * eps


class VampPrior(MixturePrior):
    """p(z) = (1/K) sum_k q(z | u_k), the encoder's own posteriors at K learned pseudo-inputs u.

    Tomczak & Welling 2018, equation 9.

    Args:
        input_shape: the shape of one sample of the data, floating.
        components: K.
        bounded: whether data lie in [0, 1], and so pseudo-inputs as well, by a sigmoid.
    """

    def __init__(
        self, input_shape: Sequence[int], *, components: int = 100, bounded: bool = True
    ) -> None:
        nn.Module.__init__(self)
        if components < 1:
            raise ValueError(f"a prior's components must be at least 1, got {components}")
        self.bounded = bounded
        self.pseudo_inputs = nn.Parameter(torch.randn(components, *input_shape))

    def components(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Components:
        u = self.pseudo_inputs
        return Components(*encode(torch.sigmoid(u) if self.bounded else u), None)


def make_prior(
    name: str, latent_dim: int, input_shape: Sequence[int], **options: object
) -> MixturePrior | None:
    """A prior by name; None for "standard", N(0, 1).

    Args:
        name: one of ``PRIORS``.
        options: components=100, and of vamp bounded=True.
    """
    if name not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {name!r}")
    if name == "standard":
        if options:
            raise ValueError(f"the standard prior has no options, got {sorted(options)}")
        return None
    if name == "vamp":
        return VampPrior(input_shape, **options)
    return MixturePrior(latent_dim, **options)
