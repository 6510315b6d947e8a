"""Types for the required and the optional parts of a model, and functions that look them up.

``Model`` is the type that tools and the engine take: a torch module with the methods listed in
``vae_fast.models.base``. Your own model need not derive from any class of this package. Tools
therefore test for an optional method by ``isinstance(model, HasPhases)`` and its like, and read an
optional attribute by a function of its name, which knows the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vae_fast.models.conditions import Condition
    from vae_fast.models.gaussian import Draw, WeightedSamples
    from vae_fast.models.likelihoods import Likelihood
    from vae_fast.models.phases import Phase
    from vae_fast.models.priors import MixturePrior
    from vae_fast.types import LossOutput

    class Model(nn.Module):
        """A model as tools see it. The arguments after x are the condition, usually labels."""

        input_shape: tuple[int, ...]
        latent_dim: int
        encoder: nn.Module
        decoder: nn.Module
        likelihood: Likelihood
        # Usually None or missing: read them by the functions below.
        condition: Any
        posterior: Any
        prior_network: Any
        quantizer: Any

        def encode(self, x: Tensor, *args: Any, **options: Any) -> Any: ...
        def decode(self, z: Tensor, *args: Any, **options: Any) -> Tensor: ...
        def loss(self, x: Tensor, *args: Any, **options: Any) -> LossOutput: ...
        def reconstruct(self, x: Tensor, *args: Any, **options: Any) -> Tensor: ...
        def sample(self, n: int, *args: Any, **options: Any) -> Tensor: ...

        # ``LatentModel`` derives these from the methods above; tools that need a density call them.
        def nll_at(self, x: Tensor, z: Tensor, *condition: Tensor) -> Tensor: ...
        def nll_options(self, noise_key: Tensor | None) -> dict[str, Any]: ...
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
        def tracked_codes(self, x: Tensor) -> Tensor: ...
        def prior_from(self, eps: Tensor, *args: Any) -> Tensor: ...
        def log_prior(self, z: Tensor, *args: Any) -> Tensor: ...
        def draw(self, x: Tensor, *args: Any, **options: Any) -> Draw: ...
        def drawn(self, q: Any, **noise: Any) -> tuple[Tensor, Tensor]: ...
        def nll_of_draws(self, x: Tensor, z: Tensor, *args: Any) -> Tensor: ...
        def weighted_samples(self, x: Tensor, *args: Any, **options: Any) -> WeightedSamples: ...
        def sample_prior(self, n: int, *args: Any, **options: Any) -> Tensor: ...

else:
    Model = nn.Module


@runtime_checkable
class HasPhases(Protocol):
    """Several losses, each with its own parameters: ``vae_fast.models.phases``."""

    def phases(self) -> list[Phase]: ...


@runtime_checkable
class HasFeatures(Protocol):
    """Its own code of x, (N, latent_dim), which may differ from ``encode(x)[0]``."""

    def features(self, x: Tensor, *condition: Tensor) -> Tensor: ...


@runtime_checkable
class MakesCondition(Protocol):
    """The arguments that follow x in the other methods, from x and its labels."""

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]: ...


@runtime_checkable
class Classifies(Protocol):
    """q(y | x) of each class, (N, num_classes); a label of -1 is unknown."""

    def predict(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasCodes(Protocol):
    """Integer codes of x, and the decoder's output for codes."""

    def codes(self, x: Tensor) -> Tensor: ...
    def decode_codes(self, codes: Tensor) -> Tensor: ...


@runtime_checkable
class ReportsCodes(Protocol):
    """Statistics of the codes' use, for a report."""

    def code_report(self, codes: Tensor) -> dict[str, float]: ...


@runtime_checkable
class HasDiagnostics(Protocol):
    """Additional metrics of a batch and its labels, for a run's log."""

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Any]: ...


@runtime_checkable
class DividesKL(Protocol):
    """The batch's mean KL(q || p) of each latent dimension, (D,), in nats."""

    def kl_per_dimension(self, x: Tensor, *condition: Tensor) -> Tensor: ...


def uses_labels(model: nn.Module) -> bool:
    """Whether loss, reconstruct and sample take labels after x; False by default."""
    return bool(getattr(model, "uses_labels", False))


def condition_of(model: nn.Module, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
    """The arguments that follow x in ``model``'s methods, for samples x with labels y."""
    if isinstance(model, MakesCondition):
        return model.condition_from(x, y)
    return (y,) if uses_labels(model) else ()


def is_probabilistic(model: nn.Module) -> bool:
    """Whether z has a density, so that the KL and the ELBO are defined; True by default."""
    return bool(getattr(model, "is_probabilistic", True))


def divides_kl(model: nn.Module) -> bool:
    """Whether the KL is a sum over latent dimensions; True by default."""
    return bool(getattr(model, "divides_kl", True))


def latent_shape(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, ...) if z is a map; None if it is a vector."""
    shape: Sequence[int] | None = getattr(model, "latent_shape", None)
    return None if shape is None else tuple(shape)


def likelihood_of(model: nn.Module) -> Likelihood | None:
    found: Likelihood | None = getattr(model, "likelihood", None)
    return found


def target_of(model: nn.Module) -> str | None:
    """The kind of data of the model's likelihood, such as "unit" or "count"; None if unknown."""
    target: str | None = getattr(likelihood_of(model), "target", None)
    return target


def conditioning_of(model: nn.Module) -> Condition | None:
    """The module that maps y to the networks' input; None for an unconditional model."""
    found: Condition | None = getattr(model, "condition", None)
    return found


def learned_prior_of(model: nn.Module) -> MixturePrior | None:
    found: MixturePrior | None = getattr(model, "learned_prior", None)
    return found


def ranks_by_loss(model: nn.Module) -> bool:
    """Whether a lower validation loss means a better model; True by default. Otherwise the latest
    validated weights are the best."""
    judged = getattr(part_of(model, "objective"), "ranks_by_loss", None)
    return judged is None or bool(judged())


def part_of(model: nn.Module, name: str) -> Any:
    """An optional part, such as ``objective``, ``posterior`` or ``prior_network``, or None."""
    return getattr(model, name, None)
