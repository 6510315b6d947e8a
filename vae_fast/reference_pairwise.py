"""The pairwise ops in plain PyTorch: sums over all pairs of a row of one matrix and a row of another.

The arguments have been checked by ``vae_fast.functional.pairwise``. If the tensor of pairs would be
large, rows are processed in chunks that backward computes again, so memory stays limited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vae_fast.reference import compute_dtype

Maybe = Tensor | None

LARGEST = 1 << 24  # elements of a tensor of pairs


def _in_chunks(of_rows: Callable[..., tuple[Tensor, ...]], rows: int, pairs: int) -> list[Tensor]:
    """``of_rows(begin, end)``, whose outputs have one row for each of ``rows``, joined."""
    each = max(1, LARGEST // max(1, pairs))
    if rows <= each:
        return list(of_rows(0, rows))
    parts = [
        checkpoint(of_rows, i, min(rows, i + each), use_reentrant=False)
        for i in range(0, rows, each)
    ]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def pair_weights(
    first: int, last: int, terms: int, own: float, next: float, like: Tensor
) -> Tensor:
    """The factors of rows ``first`` to ``last``, (rows, terms): ``own`` on the diagonal, ``next``
    beside it, 1 elsewhere."""
    row = torch.arange(first, last, device=like.device).unsqueeze(1)
    term = torch.arange(terms, device=like.device)
    weights = torch.ones((last - first, terms), dtype=like.dtype, device=like.device)
    inside = row < terms
    after = torch.where(row + 1 < terms, row + 1, 0)
    weights = torch.where(inside & (term == after), weights * next, weights)
    return torch.where(inside & (term == row), weights * own, weights)


def pair_density(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    logits: Maybe,
    own: float,
    next: float,
    offset: float,
    want_parts: bool,
) -> tuple[Tensor, Tensor]:
    """log sum_j w_ij N(z_i | mu_j, exp(logvar_j)) + offset: over all dimensions, and in each."""
    dtype = compute_dtype(z, mu, logvar)
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    terms, dims = mu.shape

    def of_rows(begin: int, end: int) -> tuple[Tensor, Tensor]:
        scaled = (z[begin:end].unsqueeze(1) - mu) * torch.exp(-0.5 * logvar)
        log_density = -0.5 * (scaled * scaled + logvar + math.log(2 * math.pi))
        log_weight = pair_weights(begin, end, terms, own, next, z).log()
        whole_weight = log_weight if logits is None else log_weight + logits.to(dtype)
        whole = torch.logsumexp(log_density.sum(-1) + whole_weight, 1) + offset
        if not want_parts:
            return whole, z.new_empty((end - begin, 0))
        return whole, torch.logsumexp(log_density + log_weight.unsqueeze(-1), 1) + offset

    whole, parts = _in_chunks(of_rows, len(z), terms * dims)
    return whole, parts if want_parts else z.new_empty((0, dims))


def _kernel(kind: int, squared: Tensor, bandwidths: Sequence[float]) -> Tensor:
    total = torch.zeros_like(squared)
    for h in bandwidths:
        scaled = squared / (2 * h * h)
        total = total + (torch.exp(-scaled) if kind == 0 else 1 / (1 + scaled))
    return total / len(bandwidths)


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float], kind: int, unbiased: bool) -> Tensor:
    """The squared maximum mean discrepancy (Gretton et al. 2012, equations 3 and 5), 0-d."""
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)

    def mean(a: Tensor, b: Tensor, within: bool) -> Tensor:
        def of_rows(begin: int, end: int) -> tuple[Tensor]:
            squared = (a[begin:end].unsqueeze(1) - b).square().sum(-1)
            k = _kernel(kind, squared, bandwidths)
            if within and unbiased:
                row = torch.arange(begin, end, device=a.device).unsqueeze(1)
                k = torch.where(row == torch.arange(len(b), device=a.device), 0.0, k)
            return (k.sum(1),)

        (sums,) = _in_chunks(of_rows, len(a), b.numel())
        others = len(b) - 1 if within and unbiased else len(b)
        return sums.sum() / (len(a) * others)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def nearest_code(x: Tensor, codes: Tensor) -> Tensor:
    """The row of ``codes`` nearest to each row of x, the lowest of those equally near."""
    dtype = compute_dtype(x, codes)
    x, codes = x.detach().to(dtype), codes.detach().to(dtype)

    def of_rows(begin: int, end: int) -> tuple[Tensor]:
        squared = (x[begin:end].unsqueeze(1) - codes).square().sum(-1)
        squared = squared.nan_to_num(torch.inf, torch.inf)  # a NaN is near to no code
        # argmin may return any of equal elements; this needs the first.
        return ((squared == squared.amin(1, keepdim=True)).to(torch.int8).argmax(1),)

    with torch.no_grad():
        return _in_chunks(of_rows, len(x), codes.numel())[0]
