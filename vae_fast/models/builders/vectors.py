"""Builders of models with one encoder, one decoder and a latent vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from torch import nn

from vae_fast.functional.checks import check_count, check_counts
from vae_fast.models.aae import AAE
from vae_fast.models.base import LatentModel
from vae_fast.models.conditions import Condition, Labels, make_condition
from vae_fast.models.cvae import CVAE
from vae_fast.models.likelihoods import Likelihood, make_likelihood
from vae_fast.models.objectives import make_objective
from vae_fast.models.posteriors import make_posterior
from vae_fast.models.posteriors.common import PosteriorPart
from vae_fast.models.priors import PRIORS, make_prior
from vae_fast.models.ssvae import SSVAE
from vae_fast.networks import mlp
from vae_fast.networks.chosen import NetworkChoice

Options = dict[str, Any] | None


@dataclass(kw_only=True)
class Choices(NetworkChoice):
    """The options that builders share, and the parts of a model that they name."""

    input_shape: Sequence[int]
    latent_dim: int = 20
    likelihood: str | Likelihood = "bernoulli"
    likelihood_options: Options = None
    prior: str = "standard"
    prior_options: Options = None
    objective: str = "elbo"
    objective_options: Options = None
    posterior: str = "gaussian"
    posterior_options: Options = None

    def __post_init__(self) -> None:
        check_count("latent_dim", self.latent_dim)

    @classmethod
    def among(
        cls,
        options: dict[str, Any],
        input_shape: Sequence[int],
        without: Sequence[str] = (),
        **defaults: Any,
    ) -> Choices:
        """Move the shared options out of ``options``; TypeError for one of ``without``."""
        if refused := [name for name in without if name in options]:
            raise TypeError(f"the model takes no {', '.join(refused)}")
        known = [field.name for field in fields(cls) if field.name in options]
        return cls(
            input_shape=input_shape, **{**defaults, **{name: options.pop(name) for name in known}}
        )

    def parts(self) -> dict[str, Any]:
        """The arguments of every model's constructor."""
        made = {
            "input_shape": self.input_shape,
            "latent_dim": self.latent_dim,
            "likelihood": self.p_x,
            "objective": make_objective(
                self.objective, self.latent_dim, self.input_shape, **(self.objective_options or {})
            ),
            "posterior": self.q,
        }
        return {name: part for name, part in made.items() if part is not None}

    @cached_property
    def p_x(self) -> Likelihood:
        return make_likelihood(self.likelihood, self.input_shape, **(self.likelihood_options or {}))

    @cached_property
    def q(self) -> PosteriorPart | None:
        return make_posterior(self.posterior, self.latent_dim, **(self.posterior_options or {}))

    def features(self, per_latent: int = 2) -> int:
        """How many features parametrise q(z | x), with those that condition its flow."""
        return per_latent * self.latent_dim + (0 if self.q is None else self.q.context)

    def made_prior(self) -> nn.Module | None:
        return make_prior(
            self.prior, self.latent_dim, self.input_shape, **(self.prior_options or {})
        )

    def output_shape(self) -> tuple[int, ...]:
        """The shape of the likelihood's parameters for one sample."""
        return self.p_x.parameters_shape(self.input_shape)


def gaussian(
    model: Callable[..., LatentModel], features_per_latent: int = 2, default_prior: str = "standard"
) -> Callable[..., nn.Module]:
    """A builder for models with one encoder, one decoder and a latent vector."""

    def build_model(input_shape: Sequence[int], **options: Any) -> nn.Module:
        chosen = Choices.among(options, input_shape, prior=default_prior)
        parts = chosen.parts()
        return model(
            chosen.encoder(input_shape, chosen.features(features_per_latent)),
            chosen.decoder(chosen.latent_dim, chosen.output_shape()),
            learned_prior=chosen.made_prior(),
            **parts,
            **options,
        )

    return build_model


def adversarial(
    input_shape: Sequence[int],
    *,
    latent_dim: int = 8,
    discriminator_hidden: Sequence[int] = (128, 128),
    **options: Any,
) -> nn.Module:
    """An AAE; the discriminator has hidden layers of ``discriminator_hidden``."""
    check_count("latent_dim", latent_dim)
    check_counts("discriminator_hidden", discriminator_hidden)
    judge = mlp([latent_dim, *discriminator_hidden, 1], activation="leaky_relu")
    builder = gaussian(lambda encoder, decoder, **rest: AAE(encoder, decoder, judge, **rest), 1)
    return builder(input_shape, latent_dim=latent_dim, **options)


def conditional(model: Callable[..., CVAE]) -> Callable[..., nn.Module]:
    """A builder for models that concatenate y to the encoder's features and to z."""
    known = ["standard", "learned", *(name for name in PRIORS[1:] if name != "vamp")]

    def build_model(
        input_shape: Sequence[int],
        *,
        condition: str | Condition = "labels",
        condition_options: Options = None,
        hidden: int = 256,
        **options: Any,
    ) -> nn.Module:
        chosen = Choices.among(options, input_shape)
        parts, dim, prior = chosen.parts(), chosen.latent_dim, chosen.prior
        if prior not in known:
            raise ValueError(f"prior must be one of {', '.join(known)}, got {prior!r}")
        y = make_condition(condition, input_shape, chosen, **(condition_options or {}))
        if prior != "learned":
            parts["learned_prior"] = chosen.made_prior()
        elif chosen.prior_options:
            raise ValueError(
                f"the learned prior has no options, got {sorted(chosen.prior_options)}"
            )
        else:
            parts["prior_network"] = mlp([y.features, hidden, 2 * dim])
        return model(
            nn.Sequential(chosen.encoder(input_shape, hidden), nn.SiLU()),
            mlp([hidden + y.features, hidden, chosen.features()]),
            chosen.decoder(dim + y.features, chosen.output_shape()),
            y,
            **parts,
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
    """An SSVAE with a linear classifier on the encoder's ``hidden`` features. Dropout before the
    classifier keeps it from memorising few labels.
    """
    if options.pop("prior", "standard") != "standard":
        raise ValueError(
            "prior must be standard for ssvae, whose p(z) is N(0, 1); cvae can learn it"
        )

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
