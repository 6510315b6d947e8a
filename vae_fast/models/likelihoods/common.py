"""The base of likelihoods, and the class of those with formulas in ``vae_fast.likelihoods``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional import elbo, gaussian_kl, nll
from vae_fast.likelihoods import Spec
from vae_fast.reference import compute_dtype
from vae_fast.types import LossOutput, Reduction


class Likelihood(nn.Module):
    """The base of every p(x | z); a new one implements ``nll`` and ``mean``."""

    parameters_per_element: int = 1
    discrete: bool = False
    target: str = "real"
    """The kind of data: "unit", "real", "count", "level" or "category"."""

    center: float | Tensor = 0.0
    spread: float | Tensor = 1.0
    """The data's mean and standard deviation, if known, for imputation and for noise on x."""

    @property
    def described(self) -> str:
        """Its name in reports."""
        return type(self).__name__.lower()

    def parameters_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The decoder's output shape, (P * C, ...), for data of ``shape`` (C, ...)."""
        return (self.parameters_per_element * shape[0], *shape[1:])

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        """-log p(x | z) in nats. ``params``: (N, P * C, ...), ``x``: (N, C, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must implement nll(params, x)")

    def nll_samples(self, params: Tensor, x: Tensor) -> Tensor:
        """-log p(x | z_k), (K, N), in nats, for parameters (K, N, P * C, ...) of K samples of z."""
        k, n = params.shape[:2]
        repeated = x.expand(k, *x.shape).flatten(0, 1)
        return self.nll(params.flatten(0, 1), repeated, reduction="none").view(k, n)

    def mean(self, params: Tensor) -> Tensor:
        """E[x | z], in x's shape."""
        raise NotImplementedError(f"{type(self).__name__} must implement mean(params)")

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw x ~ p(x | z), in x's shape."""
        raise NotImplementedError(f"{type(self).__name__} must implement sample(params)")

    def loss(
        self,
        params: Tensor,
        x: Tensor,
        *q: Tensor,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        """-log p(x | z) + beta * KL(N(mu, exp(logvar)) || N(0, 1)), in nats. ``q``: mu, logvar."""
        recon = self.nll(params, x, reduction=reduction)
        kl = gaussian_kl(*q, reduction=reduction)
        return LossOutput(recon + beta * kl, recon, kl)

    def _split(self, params: Tensor, x: Tensor | None = None) -> tuple[Tensor, ...]:
        """The P parameters, each in x's shape."""
        if x is not None:
            wanted = (x.shape[0], self.parameters_per_element * x.shape[1], *x.shape[2:])
            if tuple(params.shape) != wanted:
                raise ValueError(
                    f"{type(self).__name__} needs {self.parameters_per_element} parameter(s) per "
                    f"element of x: for x of shape {tuple(x.shape)} the decoder must give {wanted},"
                    f" not {tuple(params.shape)}"
                )
        return params.chunk(self.parameters_per_element, dim=1)


class OfSpec(Likelihood):
    """A likelihood of ``vae_fast.likelihoods.SPECS``; the decoder gives all parameters."""

    spec: Spec

    def __init__(self, spec: Spec | None = None) -> None:
        super().__init__()
        if spec is not None:
            self.spec = spec
            self.discrete = spec.target in ("count", "level", "category")
            self.parameters_per_element = len(spec.params)
        self.target = self.spec.target

    @property
    def described(self) -> str:
        return self.spec.family

    def given(self, params: Tensor) -> list[Tensor | float]:
        """The spec's parameters from the decoder's output: one tensor each, or all stacked."""
        return [params]

    def data(self, x: Tensor, params: Tensor) -> Tensor:
        """x in the form that the spec requires."""
        if x.is_floating_point() or x.dtype in (torch.uint8, torch.bool):
            return x
        return x if self.target == "count" else x.to(compute_dtype(params))

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        self._check(params, x)
        x = self.data(x, params)  # first, since it may set parameters from the first batch
        return nll(self.spec, self.given(params), x, reduction=reduction)

    def loss(
        self,
        params: Tensor,
        x: Tensor,
        *q: Tensor,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        self._check(params, x)
        x, given = self.data(x, params), self.given(params)
        return elbo(self.spec, given, x, *q, beta=beta, reduction=reduction)

    def mean(self, params: Tensor) -> Tensor:
        return self.spec.mean(*self._each(params))

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.spec.sample(*self._each(params), generator=generator)

    def _each(self, params: Tensor) -> list[Tensor]:
        """Each parameter as a tensor, in the decoder's dtype or a wider one."""
        given: Sequence[Tensor | float] = self.given(params)
        if len(given) < len(self.spec.params):
            given = torch.as_tensor(given[0]).chunk(len(self.spec.params), dim=1)
        return [torch.as_tensor(p, device=params.device) for p in given]

    def _check(self, params: Tensor, x: Tensor) -> None:
        self._split(params, x)
