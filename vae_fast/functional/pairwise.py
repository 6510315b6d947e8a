"""Sums over all pairs of rows, without a tensor of all pairs: densities, MMD, nearest codes.

The CPU has native kernels. Other devices use plain PyTorch, in chunks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast import reference_pairwise as reference
from vae_fast.backend import has_native, use_native
from vae_fast.functional.checks import check_floating, gaussian_pair
from vae_fast.reference import compute_dtype

if has_native("cpu"):
    from vae_fast.ops import pairwise as _pairwise

Sampling = Literal["weighted", "stratified"]
SAMPLINGS = ("weighted", "stratified")
Kernel = Literal["rbf", "imq"]
KERNELS = ("rbf", "imq")


class LatentDecomposition(NamedTuple):
    """The parts of the mean KL(q(z | x) || p(z)), 0-d each, in nats; they add up to its estimate.

    Chen et al. 2018, equation 2.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def _ops_for(t: Tensor) -> Any:
    return _pairwise if t.is_cpu and use_native("cpu") else reference


def _matrices(**named: Tensor) -> list[Tensor]:
    """Check that all are (rows, D) with the same D on one device, and convert them to one dtype."""
    (name, first), *rest = named.items()
    for other, t in named.items():
        check_floating(other, t)
        if t.dim() != 2:
            raise ValueError(f"{other} must be a matrix (rows, D), got shape {tuple(t.shape)}")
    for other, t in rest:
        if t.shape[1] != first.shape[1]:
            raise ValueError(
                f"{other} has {t.shape[1]} columns, {name} has {first.shape[1]}: they must be equal"
            )
        if t.device != first.device:
            raise ValueError(
                f"{other} is on {t.device}, {name} on {first.device}: move them to one device"
            )
    dtype = first.dtype
    for _, t in rest:
        dtype = torch.promote_types(dtype, t.dtype)
    return [t.to(dtype) for t in named.values()]


def _positive_rows(name: str, t: Tensor, least: int = 1) -> None:
    if t.shape[0] < least:
        raise ValueError(f"{name} needs at least {least} rows, got shape {tuple(t.shape)}")


# --- Gaussian densities --------------------------------------------------------------------------


def mixture_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, logits: Tensor | None = None
) -> Tensor:
    """log sum_k w_k N(z_b | mu_k, diag(exp(logvar_k))) in nats: a Gaussian mixture's log-density.

    The (B, K, D) tensor of pairs is never made. In a VampPrior (Tomczak & Welling 2018, equation 9)
    mu and logvar are the encoder's outputs at K pseudo-inputs.

    Args:
        z: (B, D).
        mu, logvar: (K, D); logvar is log sigma^2.
        logits: (K,), unnormalised log-weights: w = softmax(logits); None for equal weights.

    Returns:
        (B,), float32 (float64 for float64 inputs). Gradients for every argument.

    Raises:
        ValueError, TypeError: shapes, devices or dtypes that don't fit.
    """
    mu, logvar = gaussian_pair(mu, logvar)
    z, mu, logvar = _matrices(z=z, mu=mu, logvar=logvar)
    _positive_rows("mu", mu)
    if logits is None:
        return _ops_for(z).pair_density(z, mu, logvar, None, 1.0, 1.0, -math.log(len(mu)), False)[0]
    check_floating("logits", logits)
    if logits.shape != mu.shape[:1] or logits.device != mu.device:
        raise ValueError(
            f"logits must be ({len(mu)},), one for each row of mu, on {mu.device}; got "
            f"{tuple(logits.shape)} on {logits.device}"
        )
    dtype = torch.promote_types(z.dtype, logits.dtype)
    z, mu, logvar, logits = (t.to(dtype) for t in (z, mu, logvar, logits))
    joint = _ops_for(z).pair_density(z, mu, logvar, logits, 1.0, 1.0, 0.0, False)[0]
    return joint - torch.logsumexp(logits.to(joint.dtype), 0)


def aggregate_log_densities(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    *,
    sampling: Sampling = "stratified",
) -> tuple[Tensor, Tensor]:
    """log q(z_i) and log q(z_id) of the aggregate posterior q(z) = (1/N) sum_n q(z | x_n), in nats.

    Estimated from the minibatch that z was drawn from (Chen et al. 2018, appendix C). With
    M = B - 1 other samples, "stratified" gives the row's own posterior the weight 1/N, the next
    row's (N - M) / (N M), and the others 1/M each (appendix C.2); its expectation over minibatches
    is q(z). "weighted" gives each of the B the weight 1 / (N B) (appendix C.1), for a lower bound.
    For a single row the two are equal.

    Args:
        z: (B, D), row i drawn from row i of mu and logvar.
        mu, logvar: (B, D); logvar is log sigma^2.
        dataset_size: N, at least B.
        sampling: "stratified" or "weighted".

    Returns:
        (B,) and (B, D), float32 (float64 for float64 inputs).
    """
    mu, logvar = gaussian_pair(mu, logvar)
    z, mu, logvar = _matrices(z=z, mu=mu, logvar=logvar)
    rows = len(mu)
    if len(z) != rows:
        raise ValueError(f"z has {len(z)} rows, mu has {rows}: z_i is a draw from row i of mu")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    if not isinstance(dataset_size, (Integral, torch.SymInt)):
        raise TypeError(f"dataset_size must be a whole number, got {dataset_size!r}")
    if dataset_size < max(1, rows):
        raise ValueError(
            f"dataset_size is {dataset_size}, and the batch has {rows} rows: it is the number of "
            "samples that batches are drawn from"
        )
    if rows == 0:
        parts = (z + mu + logvar).to(compute_dtype(z))
        return parts.sum(1), parts
    n, m = dataset_size, rows - 1
    own, next, offset = 1.0, 1.0, -math.log(n) - math.log(rows)
    if sampling == "stratified" and m > 0:
        own, next, offset = m / n, (n - m) / n, -math.log(m)
    return _ops_for(z).pair_density(z, mu, logvar, None, own, next, offset, True)


def total_correlation(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    *,
    sampling: Sampling = "stratified",
) -> Tensor:
    """KL(q(z) || prod_d q(z_d)), the total correlation of the aggregate posterior, 0-d, in nats.

    The mean over the batch of log q(z) - sum_d log q(z_d); see ``aggregate_log_densities`` for the
    arguments.
    """
    whole, parts = aggregate_log_densities(z, mu, logvar, dataset_size, sampling=sampling)
    return (whole - parts.sum(1)).mean()


def decomposed_kl(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int,
    *,
    sampling: Sampling = "stratified",
) -> LatentDecomposition:
    """Mutual information, total correlation and dimension-wise KL, 0-d each, for p(z) = N(0, 1).

    Chen et al. 2018, equation 2: E[log q(z | x) - log q(z)], E[log q(z) - sum_d log q(z_d)] and
    E[sum_d log q(z_d) - log p(z)] in nats, as means over the batch. The arguments are those of
    ``aggregate_log_densities``.
    """
    whole, parts = aggregate_log_densities(z, mu, logvar, dataset_size, sampling=sampling)
    wide = whole.dtype
    z, mu, logvar = z.to(wide), mu.to(wide), logvar.to(wide)
    scaled = (z - mu) * torch.exp(-0.5 * logvar)
    constant = math.log(2 * math.pi)
    own = -0.5 * (scaled * scaled + logvar + constant).sum(1)
    prior = -0.5 * (z * z + constant).sum(1)
    marginals = parts.sum(1)
    return LatentDecomposition(
        (own - whole).mean(), (whole - marginals).mean(), (marginals - prior).mean()
    )


# --- maximum mean discrepancy --------------------------------------------------------------------


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "rbf",
    bandwidths: Sequence[float] = (1.0,),
    unbiased: bool = True,
) -> Tensor:
    """The squared maximum mean discrepancy of the rows of x and of y, 0-d.

    Gretton et al. 2012, equation 3 (unbiased, without pairs of a row with itself) or 5 (biased).

    Args:
        x, y: (N, D) and (M, D).
        kernel: "rbf", exp(-d^2 / (2 h^2)), or "imq", 2 h^2 / (2 h^2 + d^2), with heavy tails.
        bandwidths: one or several h; the kernel is the mean over them.
        unbiased: whether to use equation 3, which may be negative and needs two rows of each.

    Returns:
        0-d, float32 (float64 for float64 inputs). Gradients for both.
    """
    x, y = _matrices(x=x, y=y)
    for name, t in (("x", x), ("y", y)):
        _positive_rows(name, t, 2 if unbiased else 1)
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    try:
        if isinstance(bandwidths, str) or any(isinstance(h, str) for h in bandwidths):
            raise TypeError
        scales = tuple(map(float, bandwidths))
    except TypeError:
        raise TypeError(f"bandwidths must be numbers, one or several; got {bandwidths!r}") from None
    if not scales or not all(math.isfinite(h) and h > 0 for h in scales):
        raise ValueError(f"bandwidths must be positive and finite, got {list(bandwidths)}")
    return _ops_for(x).mmd(x, y, scales, KERNELS.index(kernel), unbiased)


# --- nearest code --------------------------------------------------------------------------------


def nearest_code(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The row of ``codes`` nearest to each row of x, and its squared distance.

    The native kernel is exact, returns the lowest index of equally near codes, and makes no (N, K)
    tensor. A NaN is near to none.

    Args:
        x: (N, D).
        codes: (K, D).

    Returns:
        (index, distance): (N,) int64, and (N,) float32 (float64 for float64 inputs) with gradients
        for x and for the codes chosen.
    """
    x, codes = (t.contiguous() for t in _matrices(x=x, codes=codes))
    _positive_rows("codes", codes)
    index = _ops_for(x).nearest_code(x, codes)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return index, (x.to(wide) - F.embedding(index, codes.to(wide))).square().sum(1)
