"""A likelihood of data whose columns are standardized to mean 0 and standard deviation 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.models.likelihoods.common import Likelihood
from vae_fast.reference import compute_dtype
from vae_fast.types import LossOutput, Reduction


class Standardized(Likelihood):
    """p(x | z) = p_u((x - shift) / scale | z) / prod(scale), with p_u the likelihood ``inner``.

    Data, ``mean`` and ``sample`` keep their own units. ``nll`` is that of x: by the change of
    variables, ``inner``'s plus sum(log scale) nats per sample. It is therefore comparable with
    models that do not standardize.

    ``fit`` sets ``shift`` and ``scale`` to the columns' mean and standard deviation in the training
    data; before it, calls raise RuntimeError. Both are saved with the weights.

    Args:
        inner: a likelihood of real values.
        shape: a sample's shape: (D,) for a shift and a scale per column, (C, H, W) per channel.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, inner: Likelihood, shape: Sequence[int] | None) -> None:
        super().__init__()
        if inner.target != "real":
            raise ValueError(
                f"standardize is for likelihoods of real values, such as gaussian, laplace and "
                f"student_t: {inner.described} takes {inner.target} data as they are"
            )
        if shape is None or len(shape) not in (1, 3):
            raise ValueError(
                "standardize needs samples of shape (D,) or (C, H, W), whose columns or channels it "
                f"is of, and these have {'none' if shape is None else tuple(shape)}"
            )
        self.inner = inner
        self.parameters_per_element = inner.parameters_per_element
        size = (shape[0], *[1] * (len(shape) - 1))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.zeros(size))
        self.fitted = False  # whether ``shift`` and ``scale`` are set

    @property
    def described(self) -> str:
        return f"{self.inner.described} of standardized columns"

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set each column's or channel's mean and standard deviation; a constant one gets the scale
        1."""
        self.shift.copy_(mean.reshape(self.shift.shape))
        std = std.reshape(self.scale.shape)
        self.scale.copy_(torch.where(std > 0, std, torch.ones_like(std)))
        self.fitted = True

    def standardized(self, x: Tensor) -> Tensor:
        """(x - shift) / scale, in float32 or wider."""
        self._check_fitted()
        dtype = torch.promote_types(compute_dtype(x), self.shift.dtype)
        return (x.to(dtype) - self.shift) / self.scale

    def unstandardized(self, u: Tensor) -> Tensor:
        """shift + scale u."""
        self._check_fitted()
        return self.shift + self.scale * u.to(compute_dtype(u))

    @property
    def center(self) -> Tensor:  # type: ignore[override]  # it follows the data: read-only
        return self.shift

    @property
    def spread(self) -> Tensor:  # type: ignore[override]  # as center
        self._check_fitted()
        return self.scale

    def parameters_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.inner.parameters_shape(shape)

    def nll(self, params: Tensor, x: Tensor, *, reduction: Reduction = "sum") -> Tensor:
        value = self.inner.nll(params, self.standardized(x), reduction=reduction)
        return value + self._log_volume(x, reduction).to(value.dtype)

    def loss(
        self,
        params: Tensor,
        x: Tensor,
        *q: Tensor,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "batchmean",
    ) -> LossOutput:
        loss, recon, kl = self.inner.loss(
            params, self.standardized(x), *q, beta=beta, reduction=reduction
        )
        more = self._log_volume(x, reduction).to(loss.dtype)
        return LossOutput(loss + more, recon + more, kl)

    def mean(self, params: Tensor) -> Tensor:
        return self.unstandardized(self.inner.mean(params))

    def sample(self, params: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.unstandardized(self.inner.sample(params, generator=generator))

    def log_volume(self, x: Tensor) -> Tensor:
        """sum(log scale) over the elements of one sample of x (N, ...), in nats."""
        each = self.scale.log().sum()
        return each if self.scale.dim() == 1 else each * math.prod(x.shape[2:])

    def _log_volume(self, x: Tensor, reduction: Reduction) -> Tensor:
        each = self.log_volume(x)
        return each * len(x) if reduction == "sum" else each

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError(
                "this model standardizes columns and has no statistics of them yet: a Trainer takes "
                "those of its training data; by hand, "
                "vae_fast.train.fit_standardization(model, data)"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: object
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}scale" in state_dict:
            self.fitted = bool((state_dict[f"{prefix}scale"] > 0).all())


def standardized(likelihood: nn.Module | None) -> Standardized | None:
    """The likelihood if it is ``Standardized``, else None."""
    return likelihood if isinstance(likelihood, Standardized) else None
