"""Learned priors, for any model whose z has a density: mixtures of K Gaussians, and flows.

One native call computes a mixture's density without the (N, K, D) tensor. No learned prior has a
closed-form KL; the loss estimates it by log q(z | x) - log p(z) at the sampled z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.functional import mixture_log_density, reparameterize
from vae_fast.functional.checks import check_count
from vae_fast.models.gaussian import standard_log_density
from vae_fast.networks.flows import make_flow

PRIORS = ("standard", "gaussian", "mixture", "vamp", "maf", "iaf", "realnvp")


class Components(NamedTuple):
    """A mixture of K diagonal Gaussians: mu (K, D), logvar (K, D) and logits (K,), the unnormalised
    log-weights; None: equal weights."""

    mu: Tensor
    logvar: Tensor
    logits: Tensor | None


class MixturePrior(nn.Module):
    """p(z) = sum_k w_k N(mu_k, exp(logvar_k)), with learned weights, means and variances.

    Args:
        latent_dim: the size of z.
        components: K. Means start as draws from N(0, 1), or at 0 for K = 1; variances start at 1
            and weights equal.
    """

    has_marginals = True

    def __init__(self, latent_dim: int, *, components: int = 100) -> None:
        super().__init__()
        check_count("a prior's components", components)
        mu = torch.randn(components, latent_dim)
        self.mu = nn.Parameter(mu if components > 1 else torch.zeros_like(mu))
        self.logvar = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def components(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Components:
        """The Gaussians. ``encode`` maps data to mu and logvar; only ``VampPrior`` uses it."""
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

    @torch.no_grad()
    def sample(
        self,
        eps: Tensor,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        source: torch.Generator | Tensor | None = None,
    ) -> Tensor:
        """One z for each row of eps (n, D): draws from N(0, 1), times a temperature if any.
        ``source`` draws the components: a generator or a noise key."""
        mu, logvar, logits = self.components(encode)
        weights = (torch.ones_like(mu[:, 0]) if logits is None else logits.softmax(0)).float()
        if isinstance(source, Tensor):
            zeros = weights.new_zeros(len(eps))
            below = torch.special.ndtr(reparameterize(zeros, zeros, noise_key=source))
            up_to = weights.cumsum(0)
            k = torch.searchsorted(up_to, below * up_to[-1]).clamp(max=len(up_to) - 1)
        else:
            k = torch.multinomial(weights, len(eps), replacement=True, generator=source)
        return mu[k] + torch.exp(0.5 * logvar[k]) * eps


class VampPrior(MixturePrior):
    """p(z) = (1/K) sum_k q(z | u_k), a mixture of the posteriors at K learned pseudo-inputs u_k.

    Tomczak & Welling 2018, equation 9. In data bounded to [0, 1] a pseudo-input is
    sigmoid(10 v) of the learned v: Adam changes each entry of v by about the learning rate, and
    the factor lets pixels follow an encoder that learns faster.

    Args:
        input_shape: the shape of one sample of floating data.
        components: K. Pseudo-inputs start as draws from N(0, 1), or sigmoids of such draws.
        bounded: whether data lie in [0, 1]; the pseudo-inputs then do too.
    """

    RATE = 10.0

    def __init__(
        self, input_shape: Sequence[int], *, components: int = 100, bounded: bool = True
    ) -> None:
        nn.Module.__init__(self)
        check_count("a prior's components", components)
        self.bounded = bounded
        start = torch.randn(components, *input_shape)
        self.points = nn.Parameter(start / self.RATE if bounded else start)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u, (K, *input_shape), floating like ``network_input``'s result."""
        return torch.sigmoid(self.RATE * self.points) if self.bounded else self.points

    def components(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Components:
        return Components(*encode(self.pseudo_inputs), None)


class FlowPrior(nn.Module):
    """p(z) = N(f(z); 0, 1) |det df / dz|, with a normalizing flow f from z to noise.

    Args:
        kind: "maf" has fast densities, and takes latent_dim passes for a sample; "iaf" is the
            reverse; "realnvp" is fast both ways.
        options: ``steps`` and ``hidden`` of the flow.
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

    @torch.no_grad()
    def sample(
        self, eps: Tensor, encode: object = None, source: torch.Generator | Tensor | None = None
    ) -> Tensor:
        """One z for each row of eps (n, D): draws from N(0, 1), times a temperature if any."""
        return (self.flow if self.from_noise else self.flow.inverse)(eps)[0]


def make_prior(
    name: str, latent_dim: int, input_shape: Sequence[int], **options: Any
) -> MixturePrior | FlowPrior | None:
    """A prior by name; None for "standard", N(0, 1).

    Args:
        name: one of ``PRIORS``.
        options: components=100 of mixture and vamp, bounded=True of vamp; steps=4 and
            hidden=(64, 64) of the flows maf, iaf and realnvp.
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
