"""Priors with parameters of their own, for any model whose z has a density.

Mixtures of K Gaussians, whose density is one native call without the (N, K, D) tensor, and flows. None
has a KL in closed form: log q(z | x) - log p(z) at the sampled z stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.functional import mixture_log_density
from vae_fast.models.flows import make_flow
from vae_fast.models.importance import standard_log_density

PRIORS = ("standard", "gaussian", "mixture", "vamp", "maf", "iaf", "realnvp")


class Components(NamedTuple):
    """A mixture of K diagonal Gaussians: (K, D), (K, D) and (K,); logits=None: equal weights."""

    mu: Tensor
    logvar: Tensor
    logits: Tensor | None


class MixturePrior(nn.Module):
    """p(z) = sum_k w_k N(mu_k, exp(logvar_k)), all of it learned.

    With one component, a learned Gaussian, which starts as N(0, 1).

    Args:
        latent_dim: the size of z.
        components: K. Means start as draws from N(0, 1), variances at 1, weights equal.
    """

    has_marginals = True

    def __init__(self, latent_dim: int, *, components: int = 100) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a prior's components must be at least 1, got {components}")
        mu = torch.randn(components, latent_dim)
        self.mu = nn.Parameter(mu if components > 1 else torch.zeros_like(mu))
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


class FlowPrior(nn.Module):
    """p(z) = N(f(z); 0, 1) |det df / dz|: a flow between z and noise.

    Args:
        kind: "maf" is quick to ask for densities, and takes latent_dim passes for a sample; "iaf"
            the other way round; "realnvp" is quick both ways.
        options: ``steps``, ``hidden``.
    """

    has_marginals = False

    def __init__(self, latent_dim: int, kind: str = "realnvp", **options: Any) -> None:
        super().__init__()
        self.flow, self.from_noise = make_flow(kind, latent_dim, **options), kind == "iaf"

    def log_density(self, z: Tensor, encode: object = None) -> Tensor:
        """log p(z) in nats, (...,) for z (..., D)."""
        flat = z.reshape(-1, z.shape[-1])
        noise, log_det = (self.flow.inverse if self.from_noise else self.flow)(flat)
        return (standard_log_density(noise) + log_det).view(z.shape[:-1])

    def sample(
        self, eps: Tensor, encode: object = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """One z for each row of eps (n, D), draws from N(0, 1), or less for less variety."""
        return (self.flow if self.from_noise else self.flow.inverse)(eps)[0]


def make_prior(
    name: str, latent_dim: int, input_shape: Sequence[int], **options: Any
) -> MixturePrior | FlowPrior | None:
    """A prior by name; None for "standard", N(0, 1).

    Args:
        name: one of ``PRIORS``.
        options: components=100, and of vamp bounded=True; of flows steps=4 and hidden=(64, 64).
    """
    if name not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {name!r}")
    if name == "standard":
        if options:
            raise ValueError(f"the standard prior has no options, got {sorted(options)}")
        return None
    if name == "vamp":
        return VampPrior(input_shape, **options)
    if name in ("maf", "iaf", "realnvp"):
        return FlowPrior(latent_dim, name, **options)
    if name == "gaussian":
        options["components"] = 1
    return MixturePrior(latent_dim, **options)
