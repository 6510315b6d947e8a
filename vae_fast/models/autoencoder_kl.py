"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G): a
convolutional VAE with latent maps and attention. The architecture is that of Esser et al. 2021.

The loss is the negative ELBO, or with ``objective="latent-diffusion"`` the papers' adversarial and
perceptual loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.backend import use_native
from vae_fast.functional import reparameterize, sample_and_kl
from vae_fast.models.base import Posterior, free_bits_kl, sampled_kl
from vae_fast.models.blocks import (
    Double,
    Halve,
    NormConv,
    Recomputable,
    Residual,
    SelfAttention,
    set_checkpointing,
)
from vae_fast.models.likelihoods import Likelihood
from vae_fast.models.networks import device_and_dtype, image_shape
from vae_fast.models.tiles import in_tiles
from vae_fast.models.vae import BetaVAE
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


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
        input_shape: Sequence[int],
        latent_shape: Sequence[int],
        likelihood: Likelihood | None = None,
        channels_last: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            encoder,
            decoder,
            input_shape=input_shape,
            latent_dim=math.prod(latent_shape),
            likelihood=likelihood,
            **options,
        )
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
        q = self.posterior_maps(x)
        return Posterior(q.mu.flatten(1), q.logvar.flatten(1))

    def run_decoder(self, h: Tensor) -> Tensor:
        params = self.decode_maps(self.as_maps(h).reshape(-1, *self.latent_shape))
        return params.reshape(*h.shape[:-1], *params.shape[1:])

    def loss(  # type: ignore[override]  # keywords are the call's
        self,
        x: Tensor,
        *,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> LossOutput:
        """E_q[-log p(x | z)] + beta * KL(q(z | x) || N(0, 1)), in nats, one z per sample."""
        if self.objective is not None or self.posterior is not None:
            given: dict[str, Any] = {"beta": beta, "free_bits": free_bits, "reduction": reduction}
            return super().loss(x, noise_key=noise_key, **given, **options)
        q = self.posterior_maps(x)
        if self.learned_prior is not None:
            z = reparameterize(*q, noise_key=noise_key)
            flat = Posterior(q.mu.flatten(1), q.logvar.flatten(1))
            kl = sampled_kl(self, flat, z.flatten(1), free_bits)
            kl = reduce(kl.unsqueeze(1), reduction)
        elif free_bits > 0:
            z = reparameterize(*q, noise_key=noise_key)
            flat = Posterior(q.mu.flatten(1), q.logvar.flatten(1))
            kl = free_bits_kl(flat, None, free_bits, reduction=reduction)
        else:
            z, kl = sample_and_kl(*q, noise_key=noise_key, reduction=reduction)
        # x takes the parameters' layout: copying x as bytes is cheaper than copying the parameters.
        recon = self.likelihood.nll(self.decode_maps(z), self.laid_out(x), reduction=reduction)
        return LossOutput(recon + beta * kl, recon, kl)

    def blocks(self) -> list[nn.Module]:
        """The blocks to shard or wrap one by one, in the order they run."""
        return [m for m in self.modules() if isinstance(m, Recomputable) and m.level == "blocks"]

    def kl_per_channel(self, x: Tensor) -> Tensor:
        """The batch's mean KL of each channel, summed over positions, (z_channels,), in nats."""
        return self.as_maps(self.kl_per_dimension(x)).sum((1, 2))


class Encoder(nn.Sequential):
    """(N, C, H, W) to (N, out_channels, H / f, W / f), f = 2^(levels - 1).

    Each level has ``blocks`` residual blocks, each followed by attention where ``attends`` is true.
    ``halve`` connects the levels. A residual block, attention, a residual block and a convolution
    end the network.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        blocks: int,
        groups: int,
        head_channels: int,
        dropout: float,
        halve: Callable[[int], nn.Module] = Halve,
    ) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        n = widths[0]
        for level, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            if level > 0:
                layers.append(halve(n))
            for _ in range(blocks):
                layers.append(Residual(n, width, groups, dropout))
                if attention:
                    layers.append(SelfAttention(width, groups, head_channels))
                n = width
        layers += _middle(n, groups, head_channels, dropout)
        super().__init__(*layers, NormConv(n, out_channels, groups))


class Decoder(nn.Sequential):
    """(N, in_channels, h, w) to (N, out_channels, f h, f w): the mirror image of ``Encoder``, with
    one more residual block at each level (Rombach et al. 2022)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        blocks: int,
        groups: int,
        head_channels: int,
        dropout: float,
    ) -> None:
        n = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, n, 3, padding=1)]
        layers += _middle(n, groups, head_channels, dropout)
        levels = list(zip(widths, attends, strict=True))
        for level, (width, attention) in enumerate(reversed(levels)):
            if level > 0:
                layers.append(Double(n))
            for _ in range(blocks + 1):
                layers.append(Residual(n, width, groups, dropout))
                if attention:
                    layers.append(SelfAttention(width, groups, head_channels))
                n = width
        super().__init__(*layers, NormConv(n, out_channels, groups))


def _middle(n: int, groups: int, head_channels: int, dropout: float) -> list[nn.Module]:
    return [
        Residual(n, n, groups, dropout),
        SelfAttention(n, groups, head_channels),
        Residual(n, n, groups, dropout),
    ]


def networks_of_maps(
    input_shape: Sequence[int],
    out_channels: int,
    *,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    z_channels: int,
    attention: Sequence[int],
    checkpointing: str,
    features_per_latent: int = 2,
    **options: Any,
) -> tuple[Encoder, Decoder, tuple[int, int, int]]:
    """Encoder, decoder and the latent maps' shape for images of ``input_shape``.

    Args:
        out_channels: the decoder's output channels, the likelihood's parameters.
        channels, multipliers: level i has channels * multipliers[i] channels; f = 2^(levels - 1).
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: map heights at which blocks have attention. The middle always has it.
        checkpointing: "none", "norms" or "blocks" (``vae_fast.models.blocks``).
        features_per_latent: the encoder's outputs per latent value.
        options: groups, head_channels, dropout.
    """
    in_channels, height, width = image_shape(input_shape)
    sizes = {"channels": channels, "blocks": blocks, "z_channels": z_channels}
    for name, value in [*sizes.items(), *(("a multiplier", m) for m in multipliers)]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not multipliers:
        raise ValueError("multipliers must have an entry for each level, and there is none")
    f = 2 ** (len(multipliers) - 1)
    if height % f or width % f:
        raise ValueError(
            f"images of {height} x {width} can't be halved {len(multipliers) - 1} times: with "
            f"{len(multipliers)} multipliers, {tuple(multipliers)}, height and width must be "
            f"multiples of {f}; pad or resize the images, or give fewer multipliers"
        )
    heights = [height >> level for level in range(len(multipliers))]
    unknown = [side for side in attention if side not in heights]
    if unknown:
        raise ValueError(
            f"attention is asked for at heights {unknown}, and the maps of images of height "
            f"{height} have heights {heights}"
        )
    widths = [channels * m for m in multipliers]
    attends = [side in attention for side in heights]
    features = features_per_latent * z_channels
    encoder = Encoder(in_channels, features, widths, attends, blocks=blocks, **options)
    decoder = Decoder(z_channels, out_channels, widths, attends, blocks=blocks, **options)
    for network in (encoder, decoder):
        set_checkpointing(network, checkpointing)
    return encoder, decoder, (z_channels, height // f, width // f)
