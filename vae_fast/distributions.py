"""torch.distributions' Normal with vae_fast's noise and KL.

from vae_fast.distributions import Normal q = Normal(mu, scale) z = q.rsample() kl =
torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import kl

from vae_fast.functional import gaussian_kl, reparameterize

__all__ = ["Normal"]


class Normal(torch.distributions.Normal):
    """``torch.distributions.Normal`` with noise drawn by a key (``vae_fast.noise``).

    A seed gives draws of the same distribution as torch's class, but not the same numbers. The KL
    to any Normal is ``gaussian_kl``'s, elementwise and in nats like torch's. It does not overflow
    for any scale. All else is torch's.

    Args:
        loc, scale: the mean and the standard deviation, tensors or numbers that broadcast.
    """

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape ``sample_shape`` + the batch's, with gradients for loc and scale."""
        count = math.prod(sample_shape)
        shape = self._extended_shape(torch.Size(sample_shape))
        if count == 0:
            return self.loc.new_empty(shape)
        return reparameterize(self.loc, scale=self.scale, num_samples=count).reshape(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """``rsample`` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


@kl.register_kl(Normal, torch.distributions.Normal)  # type: ignore[untyped-decorator]
def _kl(q: Normal, p: torch.distributions.Normal) -> Tensor:
    loc, scale, prior_loc, prior_scale = torch.broadcast_tensors(q.loc, q.scale, p.loc, p.scale)
    return gaussian_kl(
        loc, None, prior_loc, scale=scale, prior_scale=prior_scale, reduction="elementwise"
    )
