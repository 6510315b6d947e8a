"""Builders of models with latent maps, and of models with codes at positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from vae_fast.functional.checks import check_count, check_counts
from vae_fast.models.autoencoder_kl import AutoencoderKL
from vae_fast.models.builders.vectors import Choices
from vae_fast.models.quantize import make_quantizer
from vae_fast.models.vqvae import VQVAE
from vae_fast.networks.chosen import NETWORKS
from vae_fast.networks.maps import SIZES, networks_of_maps


def latent_maps(
    input_shape: Sequence[int], *, channels_last: bool | None = None, **options: Any
) -> nn.Module:
    """An AutoencoderKL with ``networks_of_maps``'s options; by default 2.7 million parameters."""
    chosen = Choices.among(options, input_shape, without=("latent_dim", *NETWORKS))
    if unknown := set(options) - {*SIZES, "channels", "z_channels", "groups"}:
        raise TypeError(f"an autoencoder-kl takes no {', '.join(sorted(unknown))}")
    sizes = {**SIZES, "channels": 32, "z_channels": 4, "groups": 8, **options}
    planes = chosen.output_shape()[0]
    encoder, decoder, latent_shape = networks_of_maps(input_shape, planes, **sizes)
    chosen.latent_dim = math.prod(latent_shape)
    parts = chosen.parts()
    del parts["latent_dim"]
    if chosen.q is not None and chosen.q.context:
        raise ValueError(
            f"context must be 0 for an autoencoder-kl, whose latent is maps, got {chosen.q.context}"
        )
    return AutoencoderKL(
        encoder,
        decoder,
        latent_shape=latent_shape,
        channels_last=channels_last,
        learned_prior=chosen.made_prior(),
        **parts,
    )


def quantized(
    input_shape: Sequence[int],
    *,
    quantizer: str = "vq",
    quantizer_options: dict[str, Any] | None = None,
    code_dim: int | None = None,
    places: int = 16,
    **options: Any,
) -> nn.Module:
    """A VQ-VAE.

    network="maps", the default for images, gives ``code_dim`` latent maps, with a code at each
    position, and takes the options of ``networks_of_maps``. Other networks give ``places`` vectors
    of ``code_dim``, which defaults to the number of levels (4) of an fsq, the bits of a code (10)
    of an lfq, and 32 otherwise.
    """
    if "posterior" in options or "prior" in options or "latent_dim" in options:
        raise TypeError("a vq-vae has codes: it takes no posterior, prior or latent_dim")
    chosen = Choices.among(options, input_shape, network="maps" if len(input_shape) == 3 else "mlp")
    given = dict(quantizer_options or {})
    check_counts("levels", given.get("levels", ()), 2)
    if code_dim is None:
        levels = len(given.get("levels", (8, 5, 5, 5))) * given.get("groups", 1)
        code_dim = {"fsq": levels, "lfq": 10}.get(quantizer, 32)
    check_count("code_dim", code_dim)
    check_count("places", places)
    quantize = make_quantizer(quantizer, code_dim, **given)
    encoder: nn.Module
    shape: tuple[int, ...]
    if chosen.network == "maps":
        if chosen.decoder_network is not None or chosen.decoder_options is not None:
            raise ValueError(
                "maps have a decoder of the encoder's kind: give network_options alone"
            )
        sizes = {**SIZES, "channels": 16, "groups": 4, **(chosen.network_options or {})}
        encoder, of_maps, shape = networks_of_maps(
            input_shape,
            chosen.output_shape()[0],
            z_channels=code_dim,
            features_per_latent=1,
            **sizes,
        )
        decoder: nn.Module = nn.Sequential(nn.Unflatten(1, shape), of_maps)
    else:
        shape = (code_dim, places)
        encoder = chosen.encoder(input_shape, code_dim * places)
        decoder = chosen.decoder(code_dim * places, chosen.output_shape())
    chosen.latent_dim = math.prod(shape)
    parts = chosen.parts()
    del parts["latent_dim"]
    return VQVAE(encoder, decoder, quantize, latent_shape=shape, **parts, **options)
