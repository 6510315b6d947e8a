"""Models whose latent is maps, and those whose latent is codes at places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from vae_fast.models.autoencoder_kl import AutoencoderKL, networks_of_maps
from vae_fast.models.builders.vectors import decoder_like, parts
from vae_fast.models.likelihoods import Likelihood, make_likelihood
from vae_fast.models.networks import make_encoder
from vae_fast.models.priors import make_prior
from vae_fast.models.quantize import make_quantizer
from vae_fast.models.vqvae import VQVAE


def latent_maps(
    input_shape: Sequence[int],
    *,
    channels: int = 32,
    multipliers: Sequence[int] = (1, 2, 4),
    blocks: int = 1,
    z_channels: int = 4,
    attention: Sequence[int] = (),
    head_channels: int = 64,
    groups: int = 8,
    dropout: float = 0.0,
    checkpointing: str = "none",
    channels_last: bool | None = None,
    likelihood: str | Likelihood = "bernoulli",
    likelihood_options: dict[str, Any] | None = None,
    prior: str = "standard",
    prior_options: dict[str, Any] | None = None,
    objective: str = "elbo",
    objective_options: dict[str, Any] | None = None,
    posterior: str = "gaussian",
    posterior_options: dict[str, Any] | None = None,
) -> nn.Module:
    """The options are those of ``networks_of_maps``; the defaults make 2.7 million parameters."""
    p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
    chosen = (objective, objective_options, posterior, posterior_options)
    encoder, decoder, latent_shape = networks_of_maps(
        input_shape,
        p_x.parameters_shape(input_shape)[0],
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
        z_channels=z_channels,
        attention=attention,
        checkpointing=checkpointing,
        groups=groups,
        head_channels=head_channels,
        dropout=dropout,
    )
    return AutoencoderKL(
        encoder,
        decoder,
        input_shape=input_shape,
        latent_shape=latent_shape,
        likelihood=p_x,
        channels_last=channels_last,
        learned_prior=make_prior(
            prior, math.prod(latent_shape), input_shape, **(prior_options or {})
        ),
        **parts(math.prod(latent_shape), input_shape, *chosen),
    )


def quantized(
    input_shape: Sequence[int],
    *,
    quantizer: str = "vq",
    quantizer_options: dict[str, Any] | None = None,
    code_dim: int | None = None,
    places: int = 16,
    network: str | None = None,
    network_options: dict[str, Any] | None = None,
    decoder_network: str | None = None,
    decoder_options: dict[str, Any] | None = None,
    likelihood: str | Likelihood = "bernoulli",
    likelihood_options: dict[str, Any] | None = None,
    objective: str = "elbo",
    objective_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A VQ-VAE. network="maps", the default for images, has ``code_dim`` latent maps, whose places are
    those of the codes; its options are those of ``networks_of_maps``. Of other networks' features
    ``places`` vectors of ``code_dim`` are made. An fsq's code_dim is the number of its levels (4), an
    lfq's the bits of a code (10), others' 32.
    """
    p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
    given = dict(quantizer_options or {})
    if code_dim is None:
        levels = len(given.get("levels", (8, 5, 5, 5))) * given.get("groups", 1)
        code_dim = {"fsq": levels, "lfq": 10}.get(quantizer, 32)
    q = make_quantizer(quantizer, code_dim, **given)
    if network is None:
        network = "maps" if len(input_shape) == 3 else "mlp"
    outputs, sizes = p_x.parameters_shape(input_shape), dict(network_options or {})
    encoder: nn.Module
    shape: tuple[int, ...]
    if network == "maps":
        if decoder_network is not None or decoder_options is not None:
            raise ValueError(
                "maps have a decoder of the encoder's kind: give network_options alone"
            )
        sizes = {"channels": 16, "multipliers": (1, 2, 4), "blocks": 1, "attention": (), **sizes}
        sizes = {"checkpointing": "none", "groups": 4, "head_channels": 64, "dropout": 0.0, **sizes}
        encoder, of_maps, shape = networks_of_maps(
            input_shape, outputs[0], z_channels=code_dim, features_per_latent=1, **sizes
        )
        decoder: nn.Module = nn.Sequential(nn.Unflatten(1, shape), of_maps)
    else:
        shape = (code_dim, places)
        encoder = make_encoder(network, input_shape, code_dim * places, **sizes)
        rest = (network, sizes, decoder_network, decoder_options)
        decoder = decoder_like(code_dim * places, outputs, *rest)
    options |= parts(math.prod(shape), input_shape, objective, objective_options)
    return VQVAE(
        encoder, decoder, q, input_shape=input_shape, latent_shape=shape, likelihood=p_x, **options
    )
