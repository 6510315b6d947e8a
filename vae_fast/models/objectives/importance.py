"""Combinations of K-sample bounds: MIWAE, PIWAE and CIWAE (Rainforth et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vae_fast.models import importance
from vae_fast.models.interface import Model
from vae_fast.models.objectives.common import Objective


class Samples(Objective):
    """The base of objectives with ``estimates`` (M) bounds of ``samples`` (K) draws each."""

    def __init__(self, *, samples: int = 8, estimates: int = 8) -> None:
        super().__init__()
        if samples < 1 or estimates < 1:
            raise ValueError(
                f"samples and estimates must be at least 1, got {samples} and {estimates}"
            )
        self.samples, self.estimates = samples, estimates

    def weights(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> Any:
        given: dict[str, Any] = {"beta": beta, "noise_key": noise_key}
        return model.weighted_samples(
            x, *condition, num_samples=self.samples * self.estimates, **given
        )

    def mean_bound(self, log_weight: Tensor) -> Tensor:
        """The mean of M K-sample bounds, (N,), from log weights (M K, N) (equation 10)."""
        parts = log_weight.unflatten(0, (self.estimates, self.samples)).transpose(0, 1)
        return importance.bound(parts).mean(0)


class MIWAE(Samples):
    """-(1/M) sum_m log (1/K) sum_k w_mk, in nats. The encoder's gradient has less noise than with
    one bound of M K samples, and the bound is tighter than the ELBO."""

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = self.weights(model, x, *condition, beta=beta, noise_key=noise_key)
        return -self.mean_bound(found.log_weight), found.nll.mean(0).detach(), found.kl.detach()


class PIWAE(Samples):
    """One bound of M K samples trains the decoder and a learned prior; MIWAE trains the encoder.

    The loss has the value of the former. Each part draws its own samples.
    """

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        encoder = {id(p) for part in encoders(model) for p in part.parameters()}
        others = [p for p in model.parameters() if id(p) not in encoder]
        given: dict[str, Any] = {"beta": beta, "noise_key": noise_key}
        with constant(others):
            mean = -self.mean_bound(self.weights(model, x, *condition, **given).log_weight)
        with constant([p for part in encoders(model) for p in part.parameters()]):
            found = self.weights(model, x, *condition, **given)
        whole = -importance.bound(found.log_weight)
        loss = whole + (mean - mean.detach())
        return loss, found.nll.mean(0).detach(), found.kl.detach()


class CIWAE(Samples):
    """mix * (-ELBO) + (1 - mix) * (-IWAE's bound), in nats, of the same K samples (equation 12)."""

    def __init__(self, *, samples: int = 8, mix: float = 0.5) -> None:
        super().__init__(samples=samples, estimates=1)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is a part from 0 to 1, got {mix}")
        self.mix = mix

    def terms(
        self,
        model: Model,
        x: Tensor,
        *condition: Tensor,
        beta: float | Tensor,
        noise_key: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = self.weights(model, x, *condition, beta=beta, noise_key=noise_key)
        log_w = found.log_weight
        loss = -self.mix * log_w.mean(0) - (1 - self.mix) * importance.bound(log_w)
        return loss, found.nll.mean(0).detach(), found.kl.detach()


def encoders(model: Model) -> list[nn.Module]:
    """The modules of a model that compute its posterior."""
    names = ("encoder", "head", "posterior")
    found = [getattr(model, name, None) for name in names]
    return [part for part in found if isinstance(part, nn.Module)]


@contextmanager
def constant(parameters: list[nn.Parameter]) -> Iterator[None]:
    """A context in which computations have no gradient for ``parameters``."""
    changed = [p for p in parameters if p.requires_grad]
    for p in changed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in changed:
            p.requires_grad_(True)
