"""The base of posteriors q(z | x) that replace the Gaussian, and flow posteriors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.models.gaussian import log_density
from vae_fast.networks.flows import make_flow


class PosteriorPart(nn.Module):
    """A posterior parametrised by the encoder's mu and logvar, each (N, D).

    ``has_own_space``: z lies in a space with its own prior (``log_prior``, ``sample_prior``).
    ``context``: the number of further encoder features that it takes, as ``q.context``.
    """

    name = ""
    has_own_space = False
    context = 0

    def sample(self, q: Any, **noise: Any) -> tuple[Tensor, Tensor]:
        """z (N, D) and log q(z | x) (N,) in nats; (K, N, D) and (K, N) with num_samples=K.

        ``noise``: num_samples and noise_key of ``reparameterize``.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement sample(q)")

    def center(self, q: tuple[Tensor, Tensor]) -> Tensor:
        """The deterministic code of x, (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} must implement center(q)")

    def project(self, z: Tensor) -> Tensor:
        """z projected into the posterior's space."""
        return z

    def kl(self, q: tuple[Tensor, Tensor]) -> Tensor | None:
        """KL(q || p), (N,), in nats, for the space's prior p; None without a closed form."""
        return None


class FlowPosterior(PosteriorPart):
    """A Gaussian, then a flow: log q(z) = log q(z_0) - log |det df / dz_0|.

    Rezende & Mohamed 2015. The code of x is the flow of the Gaussian's mean.

    Args:
        name: planar, radial, iaf, maf or realnvp.
        context: the number of encoder features that condition the flow (Kingma et al. 2016,
            section 3). 0: the flow is the same for all x.
        options: ``steps`` and ``hidden`` of the flow.
    """

    def __init__(self, latent_dim: int, name: str, *, context: int = 0, **options: Any) -> None:
        super().__init__()
        if context < 0:
            raise ValueError(f"context, a number of features, must be at least 0, got {context}")
        self.name, self.context = name, context
        self.flow = make_flow(name, latent_dim, context=context, **options)

    def sample(self, q: Any, **noise: Any) -> tuple[Tensor, Tensor]:
        z = reparameterize(*q, **noise)
        log_q = log_density(z, *q)
        moved, log_det = self.flow(z, *self._flow_context(q))
        return moved, log_q - log_det

    def center(self, q: tuple[Tensor, Tensor]) -> Tensor:
        return self.flow(q[0], *self._flow_context(q))[0]

    def _flow_context(self, q: Any) -> tuple[Tensor, ...]:
        return (q.context,) if self.context > 0 else ()


def normals(shape: tuple[int, ...], like: Tensor, **noise: Any) -> Tensor:
    """Draws from N(0, 1), (N, *shape) or (K, N, *shape), from the noise of ``reparameterize``."""
    zeros = like.new_zeros((like.shape[0], *shape))
    return reparameterize(zeros, zeros, **noise)


def at_least_float32(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
