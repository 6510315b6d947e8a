"""The base of all models: a latent z, a decoder, a likelihood, and the interface that tools use.

The trainer, the tasks and the evaluation call these methods; your own model must offer them too:

    encode(x) -> Posterior(mu, logvar)
    decode(z) -> parameters of the likelihood
    loss(x, *, beta=1.0, free_bits=0.0, reduction="batchmean") -> LossOutput(loss, recon, kl)
    reconstruct(x) -> E[x | z] at the posterior's mean
    sample(n) -> E[x | z] for n draws z from the prior

x is (N, *input_shape), floating, uint8 (0..255 stands for x / 255) or bool. ``network_input``
scales x on the device; the loss reads uint8 directly. All terms are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.functional.checks import check_count
from vae_fast.models.call import Call, refuse_unknown
from vae_fast.models.gaussian import Posterior, point_mass
from vae_fast.models.interface import Model
from vae_fast.models.likelihoods import Bernoulli, Likelihood
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.models.priors import MixturePrior
from vae_fast.networks import device_and_dtype
from vae_fast.networks.scaling import scaled
from vae_fast.networks.scripting import NotScriptable
from vae_fast.types import LossOutput, Reduction


class LatentModel(NotScriptable, Model):
    """An encoder, a decoder and a likelihood p(x | z). Subclasses define ``encode`` and ``loss``.

    Args:
        encoder: maps (N, *input_shape) to (N, features); the subclass fixes the number of features.
        decoder: maps (N, latent_dim) to (N, P * C, ...) for data of shape (C, ...), where P is
            the likelihood's ``parameters_per_element``.
        input_shape: the shape of one sample, without the batch.
        latent_dim: the size of z.
        likelihood: p(x | z); Bernoulli by default.
        learned_prior: p(z) instead of N(0, 1), for models whose z has a density.
        objective: a loss that replaces the model's own (``vae_fast.models.objectives``).
        posterior: in place of the Gaussian (``vae_fast.models.posteriors``), for models that take
            one.

    Raises:
        ValueError: latent_dim < 1, or a part that does not fit the model.
    """

    # Whether loss, reconstruct and sample take labels y after x. The trainer then passes them.
    uses_labels = False
    # Whether z has a density, so that the KL, the ELBO and the log-likelihood are defined.
    is_probabilistic = True
    takes_objective = takes_posterior = False
    # Whether the KL is a sum over latent dimensions.
    divides_kl = True
    learned_prior: MixturePrior | None
    objective: Any

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        input_shape: Sequence[int],
        latent_dim: int,
        likelihood: Likelihood | None = None,
        learned_prior: MixturePrior | None = None,
        objective: nn.Module | None = None,
        posterior: nn.Module | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        self._check_parts(learned_prior, objective, posterior, unknown)
        check_count("latent_dim", latent_dim)
        self.encoder = encoder
        self.decoder = decoder
        self.input_shape = tuple(input_shape)
        self.latent_dim = latent_dim
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.learned_prior = learned_prior
        self.objective = objective
        self.divides_kl = getattr(learned_prior, "has_marginals", True)

    def _check_parts(self, prior: Any, objective: Any, posterior: Any, unknown: Any) -> None:
        name, has_density = type(self).__name__, self.is_probabilistic
        if unknown:
            hint = ": cvae and vrae do" if "condition" in unknown else ""
            raise TypeError(f"{name} takes no {', '.join(unknown)}{hint}")
        if objective is not None and not self.takes_objective:
            raise ValueError(
                f"{name} has a loss of its own and takes no {objective.name}: an objective is for "
                "vae, cvae, vrae and autoencoder-kl, rae-l2 and rae-gp for ae"
            )
        if objective is not None and objective.deterministic not in (None, not has_density):
            density = ("a density", "no density")
            raise ValueError(
                f"{objective.name} is for models whose z has {density[objective.deterministic]}, "
                f"and that of {name} has {density[not has_density]}"
            )
        if prior is not None and not has_density:
            raise ValueError(
                f"{name} has no density of z, and so no prior to learn: leave prior out, and fit a "
                "sampler after training"
            )
        if posterior is not None and not self.takes_posterior:
            raise ValueError(
                f"{name} takes no posterior {posterior.name}: one is for vae, cvae, iwae, vrae and "
                "autoencoder-kl"
            )

    def encode(self, x: Tensor, *condition: Any) -> Posterior:
        """q(z | x): mu and logvar, each (N, latent_dim)."""
        raise NotImplementedError(f"{type(self).__name__} must implement encode(x)")

    def loss(
        self,
        x: Tensor,
        *condition: Any,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
        noise_key: Tensor | None = None,
        **options: Any,
    ) -> LossOutput:
        """LossOutput(loss, recon, kl) in nats: 0-d, or (N,) for reduction="none".

        It is the ``objective``'s loss, or without one ``own_loss``, which says what the terms are.

        Args:
            condition: what the model is conditioned on, usually labels; most models take none.
            beta: the weight of kl.
            free_bits: nats of each latent dimension's KL (of each level's, for a hierarchy) that
                cost nothing. Losses without such a KL raise ValueError above 0.
            reduction: "batchmean", "sum" or "none"; losses defined on a batch refuse "none".
            noise_key: makes the noise repeatable (``vae_fast.noise``).
            options: the loss's own, such as ``phase`` of a model with several losses.
        """
        call = Call(self, x, condition, beta, free_bits, reduction, noise_key)
        if self.objective is not None:
            refuse_unknown(self.objective.name, self.objective.terms, options)
            made: LossOutput = self.objective(call, **options)
            return made
        refuse_unknown(type(self).__name__, self.own_loss, options)
        return self.own_loss(call, **options)

    def own_loss(self, call: Call, *arguments: Any, **options: Any) -> LossOutput:
        """The loss of a model without an ``objective``."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss(x)")

    def network_input(self, x: Tensor) -> Tensor:
        """The encoder's input for x, in the model's dtype: uint8 scaled to [0, 1], counts as
        log(1 + x), and columns standardized if the likelihood is ``Standardized``."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but the model was built for "
                f"(N, {', '.join(map(str, self.input_shape))})"
            )
        dtype = device_and_dtype(self)[1]
        if getattr(self.likelihood, "target", None) == "count":
            return torch.log1p(x.to(dtype))
        if (columns := standardized(self.likelihood)) is not None:
            return columns.standardized(x).to(dtype)
        return scaled(x, dtype)

    def values(self, x: Tensor) -> Tensor:
        """x as floats on the scale of the model's output: uint8 in [0, 1], counts and columns
        unchanged. The model's methods accept the result as x."""
        dtype = device_and_dtype(self)[1]
        is_count = getattr(self.likelihood, "target", None) == "count"
        return x.to(dtype) if is_count else scaled(x, dtype)

    def decode(self, z: Tensor) -> Tensor:
        """The likelihood's parameters for z of shape (..., latent_dim)."""
        return self.run_decoder(self.check_latent(z))

    def check_latent(self, z: Tensor) -> Tensor:
        if z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"z has shape {tuple(z.shape)}, but the model's latent_dim is {self.latent_dim}"
            )
        return z

    def run_decoder(self, h: Tensor) -> Tensor:
        """The decoder applied to h (..., features), with any number of leading dimensions."""
        params = self.decoder(h.reshape(-1, h.shape[-1]))
        return params.reshape(*h.shape[:-1], *params.shape[1:])

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        """The arguments that follow x in the other methods: (y,) or ()."""
        return (y,) if self.uses_labels else ()

    def features(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The code of x, (N, latent_dim): the posterior's mean."""
        return self.encode(x, *condition).mu

    def reconstruct(self, x: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z] at the posterior's mean, in x's shape."""
        return self.likelihood.mean(self.decode(self.features(x, *condition), *condition))

    def sample_posterior(self, x: Tensor, *condition: Tensor) -> Tensor:
        """One z ~ q(z | x) of each sample, (N, latent_dim)."""
        return reparameterize(*self.encode(x, *condition))

    def nll_at(self, x: Tensor, z: Tensor, *condition: Tensor) -> Tensor:
        """-log p(x | z) of each sample, (N,), in nats, for z (N, latent_dim)."""
        return self.likelihood.nll(self.decode(z, *condition), x, reduction="none")

    def nll_options(self, noise_key: Tensor | None) -> dict[str, Any]:
        """The options of ``nll_at`` and ``nll_of_draws`` that make a key fix the noise they draw."""
        return {}

    def squared_error(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The mean squared error of each sample's reconstruction, (N,), on the scale of
        ``network_input``: [0, 1], log(1 + count), or standardized columns."""
        made = self.as_input(self.reconstruct(x, *condition), x.dtype)
        return (self.network_input(x) - made).flatten(1).square().mean(1)

    def as_input(self, made: Tensor, dtype: torch.dtype) -> Tensor:
        """A likelihood's ``mean`` or ``sample``, scaled as ``network_input`` scales data of ``dtype``.
        Integer classes become ``dtype`` first, which decides the scale: uint8 is divided by 255."""
        return self.network_input(made if made.is_floating_point() else made.to(dtype))

    def as_values(self, made: Tensor, dtype: torch.dtype) -> Tensor:
        """A likelihood's ``mean`` or ``sample``, scaled as ``values`` scales data of ``dtype``."""
        return self.values(made if made.is_floating_point() else made.to(dtype))

    def values_per_sample(self, x: Tensor) -> float:
        """The mean number of values in a sample of x."""
        return math.prod(x.shape[1:])

    def sample(
        self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """E[x | z] for z of ``sample_prior``, (n, *input_shape)."""
        return self.likelihood.mean(self.decode(self.sample_prior(n, temperature, generator)))

    def sample_prior(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        *condition: Tensor,
    ) -> Tensor:
        """z ~ p(z), (n, latent_dim), with standard deviations multiplied by temperature."""
        if n < 0 or temperature < 0:
            raise ValueError(f"n and temperature can't be negative, got {n} and {temperature}")
        device, dtype = device_and_dtype(self)
        shape = (n, self.latent_dim)
        eps = temperature * torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return self.prior_from(eps, generator, *condition)

    def prior_from(
        self, eps: Tensor, source: torch.Generator | Tensor | None = None, *condition: Tensor
    ) -> Tensor:
        """z ~ p(z) for each row of eps (N, latent_dim): draws from N(0, 1), times a temperature if
        any. ``source``, a generator or a noise key, is for what else the prior draws."""
        if self.learned_prior is None:
            return eps
        return self.learned_prior.sample(eps, self.encode, source)

    def forward(self, x: Tensor, *condition: Tensor, **options: Any) -> LossOutput:
        """``loss``, under the name that DistributedDataParallel and torch.compile wrap."""
        return self.loss(x, *condition, **options)


class Deterministic(LatentModel):
    """The base of models whose z = encoder(x) has no density. The encoder gives latent_dim features,
    and ``encode`` returns logvar = -inf: a point mass."""

    is_probabilistic = False

    def encode(self, x: Tensor) -> Posterior:
        return point_mass(self.encoder(self.network_input(x)))
