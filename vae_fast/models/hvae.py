"""The hierarchical VAE with a top-down posterior (Sønderby et al. 2016; Child 2020, VDVAE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize, sample_and_kl
from vae_fast.functional.checks import check_count
from vae_fast.models.base import LatentModel
from vae_fast.models.call import Call, streams_of
from vae_fast.models.divergence import floored_kl, kl_by_dimension
from vae_fast.models.gaussian import Posterior, WeightedSamples, log_density
from vae_fast.models.iwae import ImportanceWeighted
from vae_fast.networks.hierarchy import BottomUp, Level, Stage
from vae_fast.reference import reduce
from vae_fast.types import LossOutput

# draw(level's number, p(z_l | z_<l), h) -> z_l, called by ``HVAE.run_top_down`` at each level.
Draw = Callable[[int, Posterior, Tensor], Tensor]


class HVAE(LatentModel):
    """p(z) = p(z_1) prod_l p(z_l | z_<l), q(z | x) = q(z_1 | x) prod_l q(z_l | z_<l, x).

    Level 1 is the top, the coarsest. The public methods take and return z as the concatenation of
    all levels, (N, latent_dim), top first.

    Args:
        stem: (N, *input_shape) to (N, width, h, w) at the finest stage.
        output: (N, width, h, w) to the likelihood's parameters.
        stages: ((height, width), number of levels), coarsest first.
        width: channels of all activations.
        z_channels: channels of each z_l.
    """

    levels: Any  # a ModuleList of Level

    def __init__(
        self,
        stem: nn.Module,
        output: nn.Module,
        stages: Sequence[Stage],
        *,
        width: int,
        z_channels: int,
        **options: Any,
    ) -> None:
        check_count("z_channels", z_channels)
        depth = sum(count for _, count in stages)
        sizes = [size for size, count in stages for _ in range(count)]
        latent_dim = sum(z_channels * h * w for h, w in sizes)
        bottom_up = BottomUp(stem, stages, width)
        super().__init__(bottom_up, output, latent_dim=latent_dim, **options)
        self.levels = nn.ModuleList(Level(width, z_channels, size, depth) for size in sizes)
        self.stage_of = [i for i, (_, count) in enumerate(stages) for _ in range(count)]
        self.top = nn.Parameter(torch.zeros(1, width, *sizes[0]))

    def run_top_down(self, n: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """The likelihood's parameters and z, (n, latent_dim), from a top-down pass that calls
        ``draw`` for each z_l."""
        h, drawn = self.top.expand(n, *self.top.shape[1:]), []
        for number, level in enumerate(self.levels):
            h = level.resize(h)
            mu, logvar, below = level.prior(h)
            z = draw(number, Posterior(mu, logvar), h)
            drawn.append(z.flatten(1))
            h = level.merge(below, z)
        return self.decoder(h), torch.cat(drawn, 1)

    def own_loss(self, call: Call) -> LossOutput:
        """-log p(x | z) + beta * sum_l KL(q(z_l | z_<l, x) || p(z_l | z_<l)), in nats.

        ``free_bits`` is in nats per level, on the batch's mean (Kingma et al. 2016).
        """
        x, reduction = call.x, call.reduction
        posterior, kls = self._posterior(x, *call.condition), []

        def draw(number: int, p: Posterior, h: Tensor) -> Tensor:
            q, key = posterior(number, h), call.stream(number)
            z, kl = sample_and_kl(*q, *p, noise_key=key, reduction="none")
            kls.append(kl)
            return z

        params = self.run_top_down(x.shape[0], draw)[0]
        recon = self.likelihood.nll(params, x, reduction=reduction)
        by_level = torch.stack(kls, 1)
        if call.free_bits > 0:
            kl = floored_kl(by_level.mean(0), x.shape[0], call.free_bits, reduction=reduction)
        else:
            kl = reduce(by_level, reduction)
        return LossOutput(recon + call.beta * kl, recon, kl)

    def encode(self, x: Tensor) -> Posterior:
        """q(z_l | z_<l, x) of all levels, concatenated, with each z_<l at its mean."""
        posterior, found = self._posterior(x), []

        def draw(number: int, p: Posterior, h: Tensor) -> Tensor:
            found.append(posterior(number, h))
            return found[-1].mu

        self.run_top_down(x.shape[0], draw)
        return _side_by_side(found)

    def sample_posterior(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no condition
        """z_l ~ q(z_l | z_<l, x) from the top down, (N, latent_dim)."""
        posterior = self._posterior(x)
        return self.run_top_down(
            x.shape[0], lambda number, p, h: reparameterize(*posterior(number, h))
        )[1]

    def decode(self, z: Tensor) -> Tensor:
        flat = self.check_latent(z).reshape(-1, self.latent_dim)
        levels = self._by_level(flat)
        params = self.run_top_down(flat.shape[0], lambda number, p, h: levels[number])[0]
        return params.reshape(*z.shape[:-1], *params.shape[1:])

    def prior_from(
        self, eps: Tensor, source: torch.Generator | Tensor | None = None, *condition: Tensor
    ) -> Tensor:
        """z_l ~ p(z_l | z_<l) from the top down, for each row of eps (N, latent_dim)."""
        levels = self._by_level(eps)
        return self.run_top_down(
            len(eps), lambda number, p, h: p.mu + torch.exp(0.5 * p.logvar) * levels[number]
        )[1]

    def _by_level(self, z: Tensor) -> list[Tensor]:
        """z (N, latent_dim) as the maps z_l of each level."""
        shapes = [level.z_shape for level in self.levels]
        parts = z.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def weighted_samples(
        self,
        x: Tensor,
        *,
        num_samples: int,
        beta: float | Tensor = 1.0,
        constant_posterior: bool = False,
        noise_key: Tensor | None = None,
    ) -> WeightedSamples:
        """As ``BetaVAE.weighted_samples``, but without z. ``constant_posterior`` raises ValueError:
        doubly reparameterised gradients need a single level."""
        if constant_posterior:
            raise ValueError(
                "dreg is not defined here for a hierarchy, where a level's z moves the posteriors below: "
                "leave it false"
            )
        posterior = self._posterior(x)
        log_weights, nlls, kls = [], [], []
        for k in range(num_samples):
            log_ratio: Any = 0.0
            kl: Any = 0.0

            def draw(number: int, p: Posterior, h: Tensor, k: int = k) -> Tensor:
                nonlocal log_ratio, kl
                stream = k * len(self.levels) + number
                key = None if noise_key is None else streams_of(noise_key, stream)
                q = posterior(number, h)
                z, kl_of_level = sample_and_kl(*q, *p, noise_key=key, reduction="none")
                kl = kl + kl_of_level
                flat, p, q = z.flatten(1), p.flat(), q.flat()
                log_p, log_q = log_density(flat, *p), log_density(flat, *q)
                log_ratio = log_ratio + log_p - log_q
                return z

            params = self.run_top_down(x.shape[0], draw)[0]
            nlls.append(self.likelihood.nll(params, x, reduction="none"))
            log_weights.append(beta * log_ratio - nlls[-1])
            kls.append(kl)
        kl = torch.stack(kls).mean(0)
        return WeightedSamples(torch.stack(log_weights), torch.stack(nlls), kl)

    def kl_per_dimension(self, x: Tensor) -> Tensor:
        """The batch's mean KL of each latent dimension of each level, (latent_dim,), in nats."""
        posterior, q, p_ = self._posterior(x), [], []

        def draw(number: int, p: Posterior, h: Tensor) -> Tensor:
            p_.append(p)
            q.append(posterior(number, h))
            return sample_and_kl(*q[-1], *p)[0]

        self.run_top_down(x.shape[0], draw)
        return kl_by_dimension(_side_by_side(q), _side_by_side(p_)) / x.shape[0]

    def _posterior(self, x: Tensor) -> Callable[[int, Tensor], Posterior]:
        """q(z_l | h, x) as a function of the level's number and h."""
        activations = self.encoder(self.network_input(x))

        def posterior(number: int, h: Tensor) -> Posterior:
            found = self.levels[number].posterior(h, activations[self.stage_of[number]])
            return Posterior(*found.chunk(2, dim=1))

        return posterior


class HierarchicalIWAE(ImportanceWeighted, HVAE):
    """A hierarchy trained on the K-sample bound."""


def _side_by_side(levels: Sequence[Posterior]) -> Posterior:
    mus, logvars = zip(*(g.flat() for g in levels), strict=True)
    return Posterior(torch.cat(mus, 1), torch.cat(logvars, 1))
