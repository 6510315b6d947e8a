"""Putting models together from options: networks by name, likelihoods, conditions.

Each builder here is what ``vae_fast.models.build`` calls as ``builder(input_shape, **options)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from vae_fast.models.aae import AAE
from vae_fast.models.autoencoder_kl import AutoencoderKL, networks_of_maps
from vae_fast.models.base import LatentModel
from vae_fast.models.conditions import DERIVED, Attributes, Condition, Images, Labels
from vae_fast.models.cvae import CVAE, ConditionalIWAE
from vae_fast.models.hierarchy import conv_ends, mlp_ends, stages_of
from vae_fast.models.hvae import HVAE
from vae_fast.models.iwae import IWAE
from vae_fast.models.likelihoods import Categorical, Likelihood, make_likelihood
from vae_fast.models.networks import image_shape, make_decoder, make_encoder, mlp, pyramid
from vae_fast.models.recurrent import RecurrentDecoder, RecurrentEncoder, StepInput
from vae_fast.models.ssvae import SSVAE
from vae_fast.models.vrae import VRAE


def gaussian(
    model: Callable[..., LatentModel], features_per_latent: int = 2
) -> Callable[..., nn.Module]:
    """A builder for models with one encoder, one decoder and a latent vector."""

    def build_model(
        input_shape: Sequence[int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: dict | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict | None = None,
        **options: object,
    ) -> nn.Module:
        p_x = make_likelihood(likelihood, **(likelihood_options or {}))
        networks = network_options or {}
        return model(
            make_encoder(network, input_shape, features_per_latent * latent_dim, **networks),
            make_decoder(network, latent_dim, p_x.parameters_shape(input_shape), **networks),
            input_shape=input_shape,
            latent_dim=latent_dim,
            likelihood=p_x,
            **options,
        )

    return build_model


def adversarial(
    input_shape: Sequence[int],
    *,
    latent_dim: int = 8,
    discriminator_hidden: Sequence[int] = (128, 128),
    **options: object,
) -> nn.Module:
    judge = mlp([latent_dim, *discriminator_hidden, 1], activation="leaky_relu")
    builder = gaussian(lambda encoder, decoder, **rest: AAE(encoder, decoder, judge, **rest), 1)
    return builder(input_shape, latent_dim=latent_dim, **options)


def conditional(model: type[CVAE]) -> Callable[..., nn.Module]:
    """A builder for models conditioned on y, which join it to the encoder's features and to z."""

    def build_model(
        input_shape: Sequence[int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: dict | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict | None = None,
        condition: str | Condition = "labels",
        condition_options: dict | None = None,
        hidden: int = 256,
        prior: str = "standard",
        **options: object,
    ) -> nn.Module:
        if prior not in ("standard", "learned"):
            raise ValueError(f"prior must be standard or learned, got {prior!r}")
        p_x = make_likelihood(likelihood, **(likelihood_options or {}))
        networks = network_options or {}
        y = _condition(condition, input_shape, network, networks, **(condition_options or {}))
        joined = latent_dim + y.features
        if model is SSVAE:
            options["classifier"] = make_encoder(network, input_shape, y.features, **networks)
        elif prior == "learned":
            options["prior_network"] = mlp([y.features, hidden, 2 * latent_dim])
        return model(
            nn.Sequential(make_encoder(network, input_shape, hidden, **networks), nn.SiLU()),
            mlp([hidden + y.features, hidden, 2 * latent_dim]),
            make_decoder(network, joined, p_x.parameters_shape(input_shape), **networks),
            y,
            input_shape=input_shape,
            latent_dim=latent_dim,
            likelihood=p_x,
            **options,
        )

    return build_model


def _condition(
    condition: str | Condition,
    input_shape: Sequence[int],
    network: str,
    network_options: dict,
    *,
    num_classes: int = 10,
    size: int | None = None,
    shape: Sequence[int] | None = None,
    features: int = 64,
) -> Condition:
    """labels (num_classes), attributes (size), images (shape), left-half or edges."""
    if isinstance(condition, Condition):
        return condition
    if condition == "labels":
        return Labels(num_classes)
    if condition == "attributes":
        if size is None:
            raise ValueError("condition='attributes' needs condition_options={'size': ...}")
        return Attributes(size)
    if condition == "images" or condition in DERIVED:
        shape = tuple(input_shape if shape is None else shape)
        encoder = make_encoder(network, shape, features, **network_options)
        return Images(encoder, shape, features, derive=DERIVED.get(condition))
    known = ["labels", "attributes", "images", *DERIVED]
    raise ValueError(f"unknown condition {condition!r}; known: {', '.join(known)}")


def recurrent(
    input_shape: Sequence[int],
    *,
    latent_dim: int = 20,
    hidden: int = 128,
    layers: int = 1,
    embedding: int = 64,
    likelihood: str | Likelihood | None = None,
    likelihood_options: dict | None = None,
    condition: str | Condition | None = None,
    condition_options: dict | None = None,
    **options: object,
) -> nn.Module:
    """The likelihood defaults to categorical for tokens (T,), Gaussian for (T, F), and Bernoulli
    for images; tokens need likelihood_options={"num_classes": ...}.
    """
    if likelihood is None:
        likelihood = {1: "categorical", 2: "gaussian"}.get(len(input_shape), "bernoulli")
    p_x = make_likelihood(likelihood, **(likelihood_options or {}))
    if isinstance(p_x, Categorical):
        tokens = p_x.parameters_per_element
    elif len(input_shape) == 1:
        raise ValueError("sequences of shape (T,) are tokens and need the categorical likelihood")
    else:
        tokens = None
    if len(input_shape) == 3:
        size = input_shape[0] * input_shape[2]
    else:
        size = input_shape[1] if len(input_shape) == 2 else 1
    y = condition
    if condition is not None:
        y = _condition(condition, input_shape, "mlp", {}, **(condition_options or {}))
    c = 0 if y is None else y.features
    outputs = p_x.parameters_per_element * size
    reads, writes = (StepInput(size, tokens, embedding) for _ in range(2))
    return VRAE(
        RecurrentEncoder(reads, hidden, layers),
        RecurrentDecoder(writes, latent_dim + c, hidden, outputs, layers),
        mlp([hidden + c, hidden, 2 * latent_dim]),
        input_shape=input_shape,
        latent_dim=latent_dim,
        likelihood=p_x,
        condition=y,
        **options,
    )


def importance_weighted(input_shape: Sequence[int], **options: object) -> nn.Module:
    """IWAE, or with ``condition`` among the options its conditional form."""
    builder = conditional(ConditionalIWAE) if "condition" in options else gaussian(IWAE)
    return builder(input_shape, **options)


def hierarchical(
    input_shape: Sequence[int],
    *,
    network: str | None = None,
    levels: Sequence[Sequence[int]] | int | None = None,
    width: int = 64,
    z_channels: int = 10,
    hidden: Sequence[int] = (400,),
    likelihood: str | Likelihood = "bernoulli",
    likelihood_options: dict | None = None,
) -> nn.Module:
    """network="mlp", the default: ``levels`` is their number; "conv": pairs (height, number of
    levels), coarse to fine, VDVAE's shape on a small image by default.
    """
    if network is None:
        network = "mlp" if levels is None or isinstance(levels, int) else "conv"
    p_x = make_likelihood(likelihood, **(likelihood_options or {}))
    output_shape = p_x.parameters_shape(input_shape)
    if network == "mlp":
        stages = [((1, 1), 1)] * (3 if levels is None else levels)
        ends = mlp_ends(input_shape, output_shape, width, hidden)
    elif network == "conv":
        if levels is None:
            sides = pyramid(*image_shape(input_shape)[1:], 16)
            coarse_to_fine = sorted({side for side, _ in sides[1:5]} | {1})
            levels = [(side, min(i + 1, 4)) for i, side in enumerate(coarse_to_fine)]
        stages = stages_of(levels, input_shape)
        ends = conv_ends(input_shape, output_shape, width, stages[-1][0])
    else:
        raise ValueError(f"a hierarchy's network must be mlp or conv, got {network!r}")
    return HVAE(
        *ends, stages, width=width, z_channels=z_channels, input_shape=input_shape, likelihood=p_x
    )


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
    likelihood_options: dict | None = None,
) -> nn.Module:
    """The options are those of ``networks_of_maps``; the defaults make 2.7 million parameters."""
    p_x = make_likelihood(likelihood, **(likelihood_options or {}))
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
    )
