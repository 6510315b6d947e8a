"""What a model may offer beside what it must, as types, and the one place where it is asked for.

``Model`` is what tools and engine are handed: a torch module with the methods named in
``vae_fast.models.base``. A model of your own need not derive from anything, so what is optional is
asked for here: a method by ``isinstance(model, HasPhases)`` and its like, an attribute by a function
of its name, which knows what a model without it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vae_fast.models.conditions import Condition
    from vae_fast.models.likelihoods import Likelihood
    from vae_fast.models.phases import Phase
    from vae_fast.models.priors import MixturePrior
    from vae_fast.types import LossOutput

    class Model(nn.Module):
        """A model as tools see it; arguments after x are the condition, labels for most."""

        input_shape: tuple[int, ...]
        latent_dim: int
        encoder: nn.Module
        decoder: nn.Module
        likelihood: Likelihood
        # None, or missing, of most: the functions below ask for them.
        condition: Any
        posterior: Any
        prior_network: Any
        quantizer: Any

        def encode(self, x: Tensor, *args: Any, **options: Any) -> Any: ...
        def decode(self, z: Tensor, *args: Any, **options: Any) -> Tensor: ...
        def loss(self, x: Tensor, *args: Any, **options: Any) -> LossOutput: ...
        def reconstruct(self, x: Tensor, *args: Any, **options: Any) -> Tensor: ...
        def sample(self, n: int, *args: Any, **options: Any) -> Tensor: ...

        # What ``LatentModel`` makes of these, which the tools of a density call.
        def nll_at(self, x: Tensor, z: Tensor, *condition: Tensor) -> Tensor: ...
        def network_input(self, x: Tensor) -> Tensor: ...
        def as_input(self, made: Tensor, dtype: torch.dtype) -> Tensor: ...
        def values(self, x: Tensor) -> Tensor: ...
        def as_values(self, made: Tensor, dtype: torch.dtype) -> Tensor: ...
        def features(self, x: Tensor, *condition: Tensor) -> Tensor: ...
        def sample_posterior(self, x: Tensor, *args: Any) -> Tensor: ...
        def kl_per_dimension(self, x: Tensor, *args: Any) -> Tensor: ...
        def codes(self, x: Tensor) -> Tensor: ...
        def squared_error(self, x: Tensor, *condition: Tensor) -> Tensor: ...
        def values_per_sample(self, x: Tensor) -> float: ...
        def prior(self, *args: Any, **options: Any) -> Any: ...
        def followed(self, x: Tensor) -> Tensor: ...
        def log_prior(self, z: Tensor, *args: Any) -> Tensor: ...
        def draw(self, x: Tensor, *args: Any, **options: Any) -> Any: ...
        def weighted_samples(self, x: Tensor, *args: Any, **options: Any) -> Any: ...
        def sample_prior(self, n: int, *args: Any, **options: Any) -> Tensor: ...

else:
    Model = nn.Module


@runtime_checkable
class HasPhases(Protocol):
    """Several losses, each with parameters of its own: ``vae_fast.models.phases``."""

    def phases(self) -> list[Phase]: ...


@runtime_checkable
class HasFeatures(Protocol):
    """A code of x, (N, latent_dim), which is not ``encode(x)[0]``."""

    def features(self, x: Tensor, *condition: Tensor) -> Tensor: ...


@runtime_checkable
class MakesCondition(Protocol):
    """What calls take after x, from x and its labels."""

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]: ...


@runtime_checkable
class Classifies(Protocol):
    """log q(y | x) of each class, (N, classes); labels of -1 are unknown ones."""

    def predict(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasCodes(Protocol):
    """Discrete codes of x, whole numbers, and what they stand for: z or a decoder's input."""

    def codes(self, x: Tensor) -> Tensor: ...
    def decode_codes(self, codes: Tensor) -> Tensor: ...


@runtime_checkable
class ReportsCodes(Protocol):
    """Rows of a report about the use of its codes."""

    def code_report(self, codes: Tensor) -> dict[str, float]: ...


@runtime_checkable
class HasDiagnostics(Protocol):
    """Numbers for a run's metrics, of a batch and its labels."""

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Any]: ...


@runtime_checkable
class DividesKL(Protocol):
    """KL(q || p) of each latent dimension, the batch's mean, (D,), in nats."""

    def kl_per_dimension(self, x: Tensor, *condition: Tensor) -> Tensor: ...


def uses_labels(model: nn.Module) -> bool:
    """Whether loss, reconstruct and sample want labels after x."""
    return bool(getattr(model, "uses_labels", False))


def is_probabilistic(model: nn.Module) -> bool:
    """Whether z has a density, so that there is a KL and an ELBO; of a model that does not say, yes."""
    return bool(getattr(model, "is_probabilistic", True))


def divides_kl(model: nn.Module) -> bool:
    """Whether the KL is a sum over latent dimensions; of a model that does not say, yes."""
    return bool(getattr(model, "divides_kl", True))


def latent_shape(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, ...) of a z that is a map; None for a vector."""
    shape: Sequence[int] | None = getattr(model, "latent_shape", None)
    return None if shape is None else tuple(shape)


def likelihood_of(model: nn.Module) -> Likelihood | None:
    found: Likelihood | None = getattr(model, "likelihood", None)
    return found


def target_of(model: nn.Module) -> str | None:
    """What data its likelihood is of: "unit", "count" or another; None where nothing says so."""
    target: str | None = getattr(likelihood_of(model), "target", None)
    return target


def conditioning_of(model: nn.Module) -> Condition | None:
    """The part that makes y the networks' input; None for a model without a condition."""
    found: Condition | None = getattr(model, "condition", None)
    return found


def learned_prior_of(model: nn.Module) -> MixturePrior | None:
    found: MixturePrior | None = getattr(model, "learned_prior", None)
    return found


def part_of(model: nn.Module, name: str) -> Any:
    """``objective``, ``posterior``, ``prior_network``: a part that few models have, or None."""
    return getattr(model, name, None)
