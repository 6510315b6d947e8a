"""Putting models together from options: networks by name, likelihoods, conditions.

Each builder here is what ``vae_fast.models.build`` calls as ``builder(input_shape, **options)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from vae_fast.models.aae import AAE
from vae_fast.models.autoencoder_kl import AutoencoderKL, networks_of_maps
from vae_fast.models.base import LatentModel
from vae_fast.models.conditions import Condition, Labels, make_condition
from vae_fast.models.cvae import CVAE, ConditionalIWAE
from vae_fast.models.hierarchy import conv_ends, mlp_ends, stages_of
from vae_fast.models.hvae import HVAE, HierarchicalIWAE
from vae_fast.models.iwae import IWAE
from vae_fast.models.likelihoods import Categorical, Likelihood, make_likelihood
from vae_fast.models.networks import image_shape, make_decoder, make_encoder, mlp, pyramid
from vae_fast.models.priors import make_prior
from vae_fast.models.recurrent import RecurrentDecoder, RecurrentEncoder, StepInput
from vae_fast.models.ssvae import SSVAE
from vae_fast.models.vrae import VRAE, RecurrentIWAE


def gaussian(
    model: Callable[..., LatentModel], features_per_latent: int = 2, default_prior: str = "standard"
) -> Callable[..., nn.Module]:
    """A builder for models with one encoder, one decoder and a latent vector."""

    def build_model(
        input_shape: Sequence[int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: dict | None = None,
        decoder_network: str | None = None,
        decoder_options: dict | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict | None = None,
        prior: str = default_prior,
        prior_options: dict | None = None,
        **options: object,
    ) -> nn.Module:
        p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
        networks = network_options or {}
        decoder = (network, networks, decoder_network, decoder_options)
        p_z = make_prior(prior, latent_dim, input_shape, **(prior_options or {}))
        return model(
            make_encoder(network, input_shape, features_per_latent * latent_dim, **networks),
            _decoder(latent_dim, p_x.parameters_shape(input_shape), *decoder),
            input_shape=input_shape,
            latent_dim=latent_dim,
            likelihood=p_x,
            learned_prior=p_z,
            **options,
        )

    return build_model


def _decoder(
    features: int,
    output_shape: Sequence[int],
    network: str,
    network_options: dict,
    decoder_network: str | None,
    decoder_options: dict | None,
) -> nn.Module:
    """The decoder of the encoder's kind and options, or of its own where they are given."""
    if decoder_options is None:
        decoder_options = network_options if decoder_network in (None, network) else {}
    return make_decoder(decoder_network or network, features, output_shape, **decoder_options)


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


def conditional(model: Callable[..., CVAE]) -> Callable[..., nn.Module]:
    """A builder for models conditioned on y, which join it to the encoder's features and to z."""

    def build_model(
        input_shape: Sequence[int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: dict | None = None,
        decoder_network: str | None = None,
        decoder_options: dict | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict | None = None,
        condition: str | Condition = "labels",
        condition_options: dict | None = None,
        hidden: int = 256,
        prior: str = "standard",
        prior_options: dict | None = None,
        **options: object,
    ) -> nn.Module:
        if prior not in ("standard", "learned", "mixture"):
            raise ValueError(f"prior must be standard, learned or mixture, got {prior!r}")
        p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
        networks = network_options or {}
        decoder = (network, networks, decoder_network, decoder_options)
        y = make_condition(condition, input_shape, network, networks, **(condition_options or {}))
        joined = latent_dim + y.features
        if prior == "mixture":
            options["learned_prior"] = make_prior(
                prior, latent_dim, input_shape, **(prior_options or {})
            )
        elif prior_options:
            raise ValueError(f"the {prior} prior has no options, got {sorted(prior_options)}")
        if prior == "learned":
            options["prior_network"] = mlp([y.features, hidden, 2 * latent_dim])
        return model(
            nn.Sequential(make_encoder(network, input_shape, hidden, **networks), nn.SiLU()),
            mlp([hidden + y.features, hidden, 2 * latent_dim]),
            _decoder(joined, p_x.parameters_shape(input_shape), *decoder),
            y,
            input_shape=input_shape,
            latent_dim=latent_dim,
            likelihood=p_x,
            **options,
        )

    return build_model


def semi_supervised(
    input_shape: Sequence[int],
    *,
    hidden: int = 256,
    classifier_dropout: float = 0.5,
    **options: object,
) -> nn.Module:
    """SSVAE, with a linear classifier on the encoder's ``hidden`` features, behind dropout: few
    labels would be learned by heart, were one feature enough to tell them by.
    """
    if options.pop("prior", "standard") != "standard":
        raise ValueError("the prior of M2 is N(0, 1); a learned one is for cvae")

    def with_classifier(
        encoder: nn.Module, head: nn.Module, decoder: nn.Module, y: Condition, **rest: object
    ) -> SSVAE:
        if not isinstance(y, Labels):
            raise TypeError(
                f"an ssvae's condition is labels, which it infers; got {type(y).__name__}"
            )
        classifier = nn.Sequential(nn.Dropout(classifier_dropout), nn.Linear(hidden, y.features))
        return SSVAE(encoder, head, decoder, y, classifier, **rest)

    return conditional(with_classifier)(input_shape, hidden=hidden, **options)


def recurrent(
    input_shape: Sequence[int],
    *,
    model: Callable[..., VRAE] = VRAE,
    latent_dim: int = 20,
    hidden: int = 128,
    layers: int = 1,
    embedding: int = 64,
    likelihood: str | Likelihood | None = None,
    likelihood_options: dict | None = None,
    condition: str | Condition | None = None,
    condition_options: dict | None = None,
    prior: str = "standard",
    prior_options: dict | None = None,
    **options: object,
) -> nn.Module:
    """The likelihood defaults to categorical for tokens (T,), Gaussian for (T, F), and Bernoulli
    for images; tokens need likelihood_options={"num_classes": ...}. Under any other likelihood,
    sequences of shape (T,) are real values, one a step.
    """
    if likelihood is None:
        likelihood = {1: "categorical", 2: "gaussian"}.get(len(input_shape), "bernoulli")
    p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
    tokens = p_x.parameters_per_element if isinstance(p_x, Categorical) else None
    if len(input_shape) == 3:
        size = input_shape[0] * input_shape[2]
    else:
        size = input_shape[1] if len(input_shape) == 2 else 1
    y = condition
    if condition is not None:
        y = make_condition(condition, input_shape, "mlp", {}, **(condition_options or {}))
        if y.derive is not None:
            raise ValueError(
                f"a vrae is conditioned on labels, attributes or images given with x, not on "
                f"{condition!r}; a cvae is on either"
            )
    if prior == "vamp" and (y is not None or tokens is not None):
        raise ValueError(
            "a vamp prior's pseudo-inputs are sequences of numbers without a condition; a mixture "
            "serves tokens and conditions as well"
        )
    c = 0 if y is None else y.features
    outputs = p_x.parameters_per_element * size
    reads, writes = (StepInput(size, tokens, embedding) for _ in range(2))
    return model(
        RecurrentEncoder(reads, hidden, layers),
        RecurrentDecoder(writes, latent_dim + c, hidden, outputs, layers),
        mlp([hidden + c, hidden, 2 * latent_dim]),
        input_shape=input_shape,
        latent_dim=latent_dim,
        likelihood=p_x,
        learned_prior=make_prior(prior, latent_dim, input_shape, **(prior_options or {})),
        condition=y,
        **options,
    )


def importance_weighted(
    input_shape: Sequence[int], *, of: str = "vae", **options: object
) -> nn.Module:
    """The K-sample bound ``of`` a vae, cvae, hvae or vrae, with that model's options; a vae with a
    ``condition`` among them is a cvae.
    """
    builders = {
        "vae": conditional(ConditionalIWAE) if "condition" in options else gaussian(IWAE),
        "cvae": conditional(ConditionalIWAE),
        "hvae": partial(hierarchical, model=HierarchicalIWAE),
        "vrae": partial(recurrent, model=RecurrentIWAE),
    }
    if of not in builders:
        raise ValueError(f"the K-sample bound is of {', '.join(builders)}, not of {of!r}")
    return builders[of](input_shape, **options)


def hierarchical(
    input_shape: Sequence[int],
    *,
    model: Callable[..., HVAE] = HVAE,
    network: str | None = None,
    levels: Sequence[Sequence[int]] | int | None = None,
    width: int = 64,
    z_channels: int = 10,
    hidden: Sequence[int] = (400,),
    likelihood: str | Likelihood = "bernoulli",
    likelihood_options: dict | None = None,
    **options: object,
) -> nn.Module:
    """network="mlp", the default: ``levels`` is their number; "conv": pairs (height, number of
    levels), coarse to fine, VDVAE's shape on a small image by default.
    """
    if network is None:
        network = "mlp" if levels is None or isinstance(levels, int) else "conv"
    p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
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
    return model(
        *ends,
        stages,
        width=width,
        z_channels=z_channels,
        input_shape=input_shape,
        likelihood=p_x,
        **options,
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
    prior: str = "standard",
    prior_options: dict | None = None,
) -> nn.Module:
    """The options are those of ``networks_of_maps``; the defaults make 2.7 million parameters."""
    p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
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
    )
