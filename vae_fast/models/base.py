"""What models share: a latent z, a decoder, a likelihood, and the calls every tool relies on.

The interface, which the trainer, tasks and evaluation use, and which a model of your own offers:

    encode(x) -> Posterior(mu, logvar)
    decode(z) -> parameters of the likelihood
    loss(x, *, beta=1.0, free_bits=0.0, reduction="batchmean") -> LossOutput(loss, recon, kl)
    reconstruct(x) -> E[x | z] at the posterior's mean
    sample(n) -> E[x | z] for n draws z from the prior

x is (N, *input_shape), floating, uint8 (0..255 stands for x / 255) or bool. The network's input is
scaled here, on the device; the loss reads uint8 as it is. All terms are in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast.functional import gather_batch, gaussian_kl, reparameterize
from vae_fast.models.importance import log_density
from vae_fast.models.interface import Model
from vae_fast.models.joined import joined_mean
from vae_fast.models.likelihoods import Bernoulli, Likelihood
from vae_fast.models.likelihoods.standardized import standardized
from vae_fast.models.networks import device_and_dtype
from vae_fast.models.priors import MixturePrior
from vae_fast.models.scripting import NotScriptable
from vae_fast.reference import as_probability
from vae_fast.types import LossOutput, Reduction


class Posterior(NamedTuple):
    """q(z | x) = N(mu, exp(logvar)), diagonal; both (N, latent_dim)."""

    mu: Tensor
    logvar: Tensor


class Contextual(Posterior):
    """A Gaussian with the features that a flow on top of it depends on: ``context``, (N, C)."""

    context: Tensor


class Draw(NamedTuple):
    """One z ~ q(z | x) of each sample: ``q``; ``z``, (N, latent_dim); ``kl``, (N,), KL(q || p) in closed
    form where there is one, else log q(z | x) - log p(z)."""

    q: Posterior
    z: Tensor
    kl: Tensor


class LatentModel(NotScriptable, Model):
    """x to z to x: an encoder, a decoder and a likelihood, for subclasses to give a loss.

    Args:
        encoder: maps (N, *input_shape) to (N, features); how many features, the model says.
        decoder: maps (N, latent_dim) to (N, P * C, ...) for data of shape (C, ...), where P is
            the likelihood's ``parameters_per_element``.
        input_shape: the shape of one sample, without the batch.
        latent_dim: the size of z.
        likelihood: p(x | z); Bernoulli if left out.
        learned_prior: p(z) in place of N(0, 1), for models whose z has a density.
        objective: the loss, in place of the model's own (``vae_fast.models.objectives``).
    """

    # Whether loss, reconstruct and sample want labels y after x; the trainer then passes them on.
    uses_labels = False
    # Whether z has a density, so that there is a KL, an ELBO and a log-likelihood to speak of.
    is_probabilistic = True
    takes_objective = False
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
    ) -> None:
        super().__init__()
        if objective is not None:
            either = objective.deterministic is None
            fits = either or objective.deterministic != self.is_probabilistic
            if not (self.takes_objective and fits):
                raise ValueError(
                    f"{type(self).__name__} has a loss of its own and takes no {objective.name}: an "
                    "objective is for vae, cvae and autoencoder-kl, rae-l2 and rae-gp for ae"
                )
        if learned_prior is not None and not self.is_probabilistic:
            raise ValueError(f"{type(self).__name__} has no density of z, and so no prior to learn")
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.encoder = encoder
        self.decoder = decoder
        self.input_shape = tuple(input_shape)
        self.latent_dim = latent_dim
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.learned_prior = learned_prior
        self.objective = objective
        self.divides_kl = getattr(learned_prior, "has_marginals", True)

    def encode(self, x: Tensor, *condition: Any) -> Posterior:
        raise NotImplementedError(f"{type(self).__name__} must implement encode(x)")

    def loss(
        self,
        x: Tensor,
        *,
        beta: float | Tensor = 1.0,
        free_bits: float = 0.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        raise NotImplementedError(f"{type(self).__name__} must implement loss(x)")

    def network_input(self, x: Tensor) -> Tensor:
        """x as the encoder takes it, in the model's dtype: uint8 scaled to [0, 1], counts as
        log(1 + x), and columns standardized where the likelihood is of such."""
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
        """x as floats on the scale of what the model makes of it: uint8 in [0, 1], counts and columns
        as they are. The model's calls take it for x."""
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
        """The decoder over any number of leading dimensions of h, (..., features)."""
        params = self.decoder(h.reshape(-1, h.shape[-1]))
        return params.reshape(*h.shape[:-1], *params.shape[1:])

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        """What the other calls take after x, for a batch x with labels y: y, or nothing."""
        return (y,) if self.uses_labels else ()

    def features(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The code of x, (N, latent_dim): the posterior's mean."""
        return self.encode(x, *condition).mu

    def reconstruct(self, x: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z] at the posterior's mean, of the shape of x."""
        return self.likelihood.mean(self.decode(self.features(x, *condition), *condition))

    def sample_posterior(self, x: Tensor, *condition: Tensor) -> Tensor:
        """One z ~ q(z | x) of each sample, (N, latent_dim)."""
        return reparameterize(*self.encode(x, *condition))

    def nll_at(self, x: Tensor, z: Tensor, *condition: Tensor) -> Tensor:
        """-log p(x | z) of each sample, (N,), in nats, for z (N, latent_dim)."""
        return self.likelihood.nll(self.decode(z, *condition), x, reduction="none")

    def squared_error(self, x: Tensor, *condition: Tensor) -> Tensor:
        """The mean squared error of each sample's reconstruction, (N,), on the scale of
        ``network_input``: of [0, 1], of counts' logarithms, or of standardized columns."""
        made = self.as_input(self.reconstruct(x, *condition), x.dtype)
        return (self.network_input(x) - made).flatten(1).square().mean(1)

    def as_input(self, made: Tensor, dtype: torch.dtype) -> Tensor:
        """A likelihood's ``mean`` or ``sample``, as ``network_input`` gives data of ``dtype``.

        The classes of 8-bit pixels stand for what the pixels do.
        """
        return self.network_input(made if made.is_floating_point() else made.to(dtype))

    def as_values(self, made: Tensor, dtype: torch.dtype) -> Tensor:
        """A likelihood's ``mean`` or ``sample``, as ``values`` gives data of ``dtype``."""
        return self.values(made if made.is_floating_point() else made.to(dtype))

    def values_per_sample(self, x: Tensor) -> float:
        """How many numbers a sample of x has, on average."""
        return math.prod(x.shape[1:])

    def sample(
        self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """E[x | z] for z ~ N(0, temperature^2), (n, *input_shape)."""
        return self.likelihood.mean(self.decode(self.sample_prior(n, temperature, generator)))

    def sample_prior(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """z ~ N(0, temperature^2), (n, latent_dim); of a learned prior, its standard deviations
        times temperature."""
        if n < 0 or temperature < 0:
            raise ValueError(f"n and temperature can't be negative, got {n} and {temperature}")
        device, dtype = device_and_dtype(self)
        shape = (n, self.latent_dim)
        eps = temperature * torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return eps if self.learned_prior is None else self._from_learned_prior(eps, generator)

    @torch.no_grad()
    def _from_learned_prior(self, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        assert self.learned_prior is not None
        return self.learned_prior.sample(eps, self.encode, generator)

    def forward(self, x: Tensor, *condition: Tensor, **options: Any) -> LossOutput:
        """``loss``: what DistributedDataParallel and torch.compile wrap."""
        return self.loss(x, *condition, **options)


def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in ``dtype``, of uint8 x / 255: ``as_probability``, in one pass where a kernel has it."""
    if not (
        x.dtype == torch.uint8
        and dtype == torch.float32
        and type(x) is Tensor
        and x.is_cpu
        and x.is_contiguous()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    ):
        return as_probability(x, dtype)
    return gather_batch(x, _rows(len(x)), mode="scale")


@functools.lru_cache(maxsize=8)
def _rows(count: int) -> Tensor:
    return torch.arange(count, device="cpu")  # whatever the default device is


def split_gaussian(features: Tensor, context: int = 0) -> Posterior:
    """(N, 2 D + context) features, as an encoder's last layer gives them, to mu and logvar."""
    if context > 0:
        features, more = features.tensor_split([features.shape[-1] - context], dim=-1)
    mu, logvar = features.chunk(2, dim=-1)
    # The ops want them so; once here is less than once in each.
    q = (mu.contiguous(), logvar.contiguous())
    if context == 0:
        return Posterior(*q)
    found = Contextual(*q)
    found.context = more
    return found


def kl_by_dimension(q: Posterior, p: Posterior | None = None) -> Tensor:
    """KL(q || p) of each latent dimension, summed over the batch, (D,), in nats; p=None: N(0, 1).

    Transposed, a latent dimension is a "sample" of the op, and the batch its features.
    """
    prior = () if p is None else (p.mu.t(), p.logvar.t())
    return gaussian_kl(q.mu.t(), q.logvar.t(), *prior, reduction="none")


def sampled_kl(model: LatentModel, q: Posterior, z: Tensor, free_bits: float = 0.0) -> Tensor:
    """log q(z | x) - log p(z) for z ~ q under the model's learned prior, (N,), in nats."""
    if free_bits > 0:
        raise ValueError(
            "free_bits bounds the KL of each dimension, and a learned prior's does not divide so: "
            "leave it 0"
        )
    assert model.learned_prior is not None
    return log_density(z, *q) - model.learned_prior.log_density(z, model.encode)


def sampled_kl_by_dimension(model: LatentModel, q: Posterior) -> Tensor:
    """KL of q to the marginals of the model's learned prior, the batch's mean, (D,), in nats.

    Estimated from one z of each sample.
    """
    z = reparameterize(*q)
    scaled_z = (z - q.mu) * torch.exp(-0.5 * q.logvar)
    log_q = -0.5 * (scaled_z * scaled_z + q.logvar + math.log(2.0 * math.pi))
    assert model.learned_prior is not None
    return (log_q - model.learned_prior.log_marginals(z, model.encode)).mean(0)


def free_bits_kl(
    q: Posterior, p: Posterior | None, free_bits: float, *, reduction: Reduction = "batchmean"
) -> Tensor:
    """sum_j max(free_bits, KL_j), KL_j the batch's mean in latent dimension j, in nats.

    Below ``free_bits`` (nats per dimension) the KL has no gradient, so a dimension is not pushed
    to collapse for less (Kingma et al. 2016, IAF, equation 15). It is a property of the batch:
    reduction="none" can't express it, and raises.
    """
    n = q.mu.shape[0]
    return floored_kl(kl_by_dimension(q, p) / n, n, free_bits, reduction=reduction)


def floored_kl(mean_kl: Tensor, n: int, free_bits: float, *, reduction: Reduction) -> Tensor:
    """sum_j max(free_bits, mean_kl_j), times n for reduction="sum"."""
    if reduction == "none":
        raise ValueError("free_bits is defined on the batch's mean KL: use batchmean or sum")
    joined = joined_mean(mean_kl.detach())
    if joined is None:
        kl = torch.clamp_min(mean_kl, free_bits).sum()
    else:
        # The floor is on the joined batch's mean, and this rank's part of its gradient stays here.
        own = torch.where(joined >= free_bits, mean_kl, mean_kl.detach())
        kl = (own + (joined.clamp_min(free_bits) - own.detach())).sum()
    return kl if reduction == "batchmean" else kl * n


def streams_of(noise_key: Tensor, i: int) -> Tensor:
    """The i-th of many keys made from one: the same Philox key, the i-th stream after its own."""
    return torch.stack([noise_key[0], noise_key[1] + i])  # of nothing that the host has to give
