"""Models with one encoder, one decoder and a latent vector, conditioned or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vae_fast.models.aae import AAE
from vae_fast.models.base import LatentModel
from vae_fast.models.conditions import Condition, Labels, make_condition
from vae_fast.models.cvae import CVAE
from vae_fast.models.likelihoods import Likelihood, make_likelihood
from vae_fast.models.networks import make_decoder, make_encoder, mlp
from vae_fast.models.objectives import make_objective
from vae_fast.models.posteriors import make_posterior
from vae_fast.models.priors import PRIORS, make_prior
from vae_fast.models.ssvae import SSVAE


def gaussian(
    model: Callable[..., LatentModel], features_per_latent: int = 2, default_prior: str = "standard"
) -> Callable[..., nn.Module]:
    """A builder for models with one encoder, one decoder and a latent vector."""

    def build_model(
        input_shape: Sequence[int],
        *,
        latent_dim: int = 20,
        network: str = "mlp",
        network_options: dict[str, Any] | None = None,
        decoder_network: str | None = None,
        decoder_options: dict[str, Any] | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        prior: str = default_prior,
        prior_options: dict[str, Any] | None = None,
        objective: str = "elbo",
        objective_options: dict[str, Any] | None = None,
        posterior: str = "gaussian",
        posterior_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> nn.Module:
        chosen = (objective, objective_options, posterior, posterior_options)
        options |= parts(latent_dim, input_shape, *chosen)
        p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
        networks = network_options or {}
        decoder = (network, networks, decoder_network, decoder_options)
        p_z = make_prior(prior, latent_dim, input_shape, **(prior_options or {}))
        return model(
            make_encoder(network, input_shape, features_per_latent * latent_dim, **networks),
            decoder_like(latent_dim, p_x.parameters_shape(input_shape), *decoder),
            input_shape=input_shape,
            latent_dim=latent_dim,
            likelihood=p_x,
            learned_prior=p_z,
            **options,
        )

    return build_model


def parts(
    latent_dim: int,
    input_shape: Sequence[int],
    objective: str,
    objective_options: dict[str, Any] | None,
    posterior: str = "gaussian",
    posterior_options: dict[str, Any] | None = None,
) -> dict[str, nn.Module]:
    """The arguments of a model's constructor that these names make."""
    made = {
        "objective": make_objective(
            objective, latent_dim, input_shape, **(objective_options or {})
        ),
        "posterior": make_posterior(posterior, latent_dim, **(posterior_options or {})),
    }
    return {name: part for name, part in made.items() if part is not None}


def decoder_like(
    features: int,
    output_shape: Sequence[int],
    network: str,
    network_options: dict[str, Any],
    decoder_network: str | None,
    decoder_options: dict[str, Any] | None,
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
    **options: Any,
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
        network_options: dict[str, Any] | None = None,
        decoder_network: str | None = None,
        decoder_options: dict[str, Any] | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
        condition: str | Condition = "labels",
        condition_options: dict[str, Any] | None = None,
        hidden: int = 256,
        prior: str = "standard",
        prior_options: dict[str, Any] | None = None,
        objective: str = "elbo",
        objective_options: dict[str, Any] | None = None,
        posterior: str = "gaussian",
        posterior_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> nn.Module:
        chosen = (objective, objective_options, posterior, posterior_options)
        options |= parts(latent_dim, input_shape, *chosen)
        of_z = [name for name in PRIORS if name not in ("standard", "vamp")]
        if prior not in ("standard", "learned", *of_z):
            known = ", ".join(["standard", "learned", *of_z])
            raise ValueError(f"prior must be one of {known}, got {prior!r}")
        p_x = make_likelihood(likelihood, input_shape, **(likelihood_options or {}))
        networks = network_options or {}
        decoder = (network, networks, decoder_network, decoder_options)
        y = make_condition(condition, input_shape, network, networks, **(condition_options or {}))
        joined = latent_dim + y.features
        if prior in of_z:
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
            decoder_like(joined, p_x.parameters_shape(input_shape), *decoder),
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
    **options: Any,
) -> nn.Module:
    """SSVAE, with a linear classifier on the encoder's ``hidden`` features, behind dropout: few
    labels would be learned by heart, were one feature enough to tell them by.
    """
    if options.pop("prior", "standard") != "standard":
        raise ValueError("the prior of M2 is N(0, 1); a learned one is for cvae")

    def with_classifier(
        encoder: nn.Module, head: nn.Module, decoder: nn.Module, y: Condition, **rest: Any
    ) -> SSVAE:
        if not isinstance(y, Labels):
            raise TypeError(
                f"an ssvae's condition is labels, which it infers; got {type(y).__name__}"
            )
        classifier = nn.Sequential(nn.Dropout(classifier_dropout), nn.Linear(hidden, y.features))
        return SSVAE(encoder, head, decoder, y, classifier, **rest)

    return conditional(with_classifier)(input_shape, hidden=hidden, **options)
