"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G): a
convolutional VAE with latent maps and attention. The architecture is that of Esser et al. 2021.

The loss is the negative ELBO, or with ``objective="latent-diffusion"`` the papers' adversarial and
perceptual loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.backend import use_native
from vae_fast.functional import reparameterize, sample_and_kl
from vae_fast.models.call import Call
from vae_fast.models.divergence import free_bits_kl
from vae_fast.models.gaussian import Posterior
from vae_fast.models.vae import BetaVAE
from vae_fast.networks import device_and_dtype
from vae_fast.networks.blocks import Recomputable
from vae_fast.networks.tiles import in_tiles
from vae_fast.types import LossOutput


class AutoencoderKL(BetaVAE):
    """q(z | x) = N(mu(x), exp(logvar(x))) over maps (z_channels, H / f, W / f), p(z) = N(0, 1).

    The public methods take and return flat z, (N, latent_dim), like every other model. Dimension
    (c * H / f + i) * W / f + j is channel c at row i and column j; ``as_maps`` restores the maps.
    For free bits, active units and the KL per dimension, a latent dimension is therefore one
    channel at one position. ``kl_per_channel`` sums over positions.

    Args:
        encoder: (N, C, H, W) to (N, 2 * z_channels, H / f, W / f): mu, then logvar.
        decoder: (N, z_channels, H / f, W / f) to the likelihood's parameters.
        latent_shape: (z_channels, H / f, W / f).
        channels_last: whether maps are channels-last in memory. None: on GPUs, whose tensor cores
            prefer it, and on CPUs with the native GroupNorm kernels. (On two AVX-512 cores it made
            a step 7% faster in float32 and 3% in bfloat16; with torch's norms it is slower.)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_shape: Sequence[int],
        channels_last: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim=math.prod(latent_shape), **options)
        self.latent_shape = tuple(latent_shape)
        self.channels_last = channels_last

    def laid_out(self, t: Tensor) -> Tensor:
        """t, (N, C, H, W), in the memory layout of maps on its device."""
        last = self.channels_last
        if last is None:
            last = t.device.type == "cuda" or use_native(t.device.type)
        return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def posterior_maps(self, x: Tensor) -> Posterior:
        """mu and logvar, each (N, z_channels, H / f, W / f), in float32 or float64.

        bfloat16 would round mu to 8 bits, and float32 is cheap for maps this small.
        """
        moments = self.encoder(self.laid_out(self.network_input(x)))
        if moments.dtype != torch.float64:
            moments = moments.float()
        return Posterior(*moments.chunk(2, dim=1))

    def decode_maps(self, z: Tensor) -> Tensor:
        """The likelihood's parameters for maps z, (N, z_channels, H / f, W / f)."""
        return self.decoder(self.laid_out(z.to(device_and_dtype(self)[1])))

    def decode_tiled(self, z: Tensor, *, tile: int = 64, overlap: float = 0.25) -> Tensor:
        """``decode_maps`` in overlapping, blended tiles, one image at a time, for maps of any size.

        Args:
            z: (N, z_channels, h, w).
            tile: height and width of a tile, in latent positions. A tile as large as z decodes
                each image whole.
            overlap: the fraction of a tile that it shares with the next, in [0, 0.5].

        Returns:
            (N, P * C, f h, f w), the likelihood's parameters. They equal ``decode_maps`` if one
            tile covers z, and approximate it otherwise: norms and attention see one tile only.
        """
        return in_tiles(self.decode_maps, z, tile, overlap)

    def as_maps(self, z: Tensor) -> Tensor:
        """(..., latent_dim) to (..., z_channels, H / f, W / f)."""
        return self.check_latent(z).unflatten(-1, self.latent_shape)

    def encode(self, x: Tensor) -> Posterior:
        return self.posterior_maps(x).flat()

    def run_decoder(self, h: Tensor) -> Tensor:
        params = self.decode_maps(self.as_maps(h).reshape(-1, *self.latent_shape))
        return params.reshape(*h.shape[:-1], *params.shape[1:])

    def own_loss(self, call: Call) -> LossOutput:
        """E_q[-log p(x | z)] + beta * KL(q(z | x) || N(0, 1)), in nats, one z per sample."""
        if self.learned_prior is not None or self.posterior is not None or call.condition:
            return super().own_loss(call)
        q = self.posterior_maps(call.x)
        if call.free_bits > 0:
            z = reparameterize(*q, noise_key=call.noise_key)
            kl = free_bits_kl(q.flat(), None, call.free_bits, reduction=call.reduction)
        else:
            z, kl = sample_and_kl(*q, noise_key=call.noise_key, reduction=call.reduction)
        # x takes the parameters' layout: copying x as bytes is cheaper than copying the parameters.
        params, x = self.decode_maps(z), self.laid_out(call.x)
        recon = self.likelihood.nll(params, x, reduction=call.reduction)
        return LossOutput(recon + call.beta * kl, recon, kl)

    def blocks(self) -> list[nn.Module]:
        """The blocks to shard or wrap one by one, in the order they run."""
        return [m for m in self.modules() if isinstance(m, Recomputable) and m.level == "blocks"]

    def kl_per_channel(self, x: Tensor) -> Tensor:
        """The batch's mean KL of each channel, summed over positions, (z_channels,), in nats."""
        return self.as_maps(self.kl_per_dimension(x)).sum((1, 2))
