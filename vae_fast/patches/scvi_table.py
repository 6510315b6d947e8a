"""scvi-tools' count likelihoods (Lopez et al. 2018), and its encoder's Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_fast.distributions import Normal
from vae_fast.functional import nll
from vae_fast.patches.core import Noise, Table, Target
from vae_fast.patches.deferred import Deferred


def _shared(t: Tensor) -> Tensor:
    """The vector from which a (B, G) tensor was expanded, such as the genes' dispersion; else the
    tensor."""
    base = t._base
    if (
        base is not None
        and t.dim() == 2
        and t.stride() == (0, 1)
        and base.dim() == 1
        and base.shape == t.shape[1:]
        and base.data_ptr() == t.data_ptr()
        and base.is_contiguous()
        and not t.retains_grad
    ):
        return base
    return t


def _log_prob(
    likelihood: str, params: tuple[str, ...], original: Callable[..., Any]
) -> Callable[..., Any]:
    always_validates = likelihood.startswith("zero_inflated")

    def log_prob(self: Any, value: Tensor) -> Tensor:
        given = [getattr(self, name) for name in params]
        # The op does not support several sets of samples, a single cell, or invalid parameters or
        # counts, which the library's code checks.
        plain = all(type(t) is Tensor and t.is_floating_point() for t in (*given, value))
        if (
            not plain
            or value.dim() != 2
            or any(t.shape != value.shape or t.device != value.device for t in given)
            or value.requires_grad
            or torch.compiler.is_compiling()
            # The original checks the support and reports values outside it.
            or ((always_validates or self._validate_args) and not _supported(value))
        ):
            return original(self, value)

        def sums() -> Tensor:
            tensors = [_shared(t) for t in given]
            return -nll(likelihood, tensors, value, reduction="none").to(given[0].dtype)

        return Deferred(given[0], lambda: original(self, value), sums)

    return log_prob


def _supported(value: Tensor) -> bool:
    """Whether these are counts. torch's check computes a remainder, which takes as long as the
    likelihood."""
    return torch.equal(value.floor(), value) and bool((value >= 0).all())


_COUNTS = "scvi.distributions._negative_binomial."


def _targets(noise: Noise) -> list[Target]:
    found = [
        Target(
            f"{_COUNTS}NegativeBinomial.log_prob",
            ("478628f4f9489584",),
            lambda original: _log_prob("negative_binomial", ("mu", "theta"), original),
            uses=((f"{_COUNTS}log_nb_positive", ("b12edba5aac3b0a6", "b34c79af2cbbd6cd")),),
        ),
        Target(
            f"{_COUNTS}ZeroInflatedNegativeBinomial.log_prob",
            ("636fdbd66b5d2563",),
            lambda original: _log_prob(
                "zero_inflated_negative_binomial", ("mu", "theta", "zi_logits"), original
            ),
            uses=((f"{_COUNTS}log_zinb_positive", ("b71560ca3a415154",)),),
        ),
    ]
    if noise == "native":
        found.append(
            Target(
                "scvi.nn._base_components.Normal",
                ("torch.distributions.Normal",),
                lambda _: Normal,
            )
        )
    return found


TABLE = Table("scvi-tools", ("1.4.1", "1.6"), _targets)
