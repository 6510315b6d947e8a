"""Calls of the pairwise functions, whose truth makes the whole tensor of pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vae_fast
from tests.fuzz.draw import FLOATS, Draw


def _gaussians(draw: Draw, rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shape = (rows, columns)
    logvar = draw.floats(shape, dtype, 0.7).clamp(min=-4)  # densities of at most some 10^4 nats
    return {"mu": draw.floats(shape, dtype), "logvar": logvar}


def _log_densities(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """(B, K, D) of log N(z_bd | mu_kd, exp(logvar_kd))."""
    off = (z[:, None] - mu[None]) ** 2 * torch.exp(-logvar)[None]
    return -0.5 * (off + logvar[None] + math.log(2 * math.pi))


def mixture_log_density(draw: Draw):
    rows, components, columns = (draw.random.randint(1, 30) for _ in range(3))
    dtype = draw.one_of(FLOATS)
    given = {"z": draw.floats((rows, columns), dtype)}
    given |= _gaussians(draw, components, columns, dtype)
    if draw.chance(0.5):
        given["logits"] = draw.floats((components,), dtype)

    def truth(z, mu, logvar, logits=None):
        weights = mu.new_zeros(len(mu)) if logits is None else logits
        pairs = _log_densities(z, mu, logvar).sum(2)
        return (torch.logsumexp(pairs + torch.log_softmax(weights, 0), 1),)

    return vae_fast.mixture_log_density, given, truth, tuple(given)


def _aggregate(draw: Draw):
    rows, columns, dtype = (
        draw.random.randint(1, 24),
        draw.random.randint(1, 12),
        draw.one_of(FLOATS),
    )
    given = {"z": draw.floats((rows, columns), dtype)} | _gaussians(draw, rows, columns, dtype)
    options = {
        "dataset_size": rows + draw.one_of((0, 1, 1000)),
        "sampling": draw.one_of(("stratified", "weighted")),
    }
    return given, options


def _aggregate_truth(z, mu, logvar, dataset_size, sampling):
    """Chen et al. 2018, appendix C, its weights spelled out for each pair."""
    rows = len(z)
    if sampling == "weighted" or rows == 1:
        weights = torch.full((rows, rows), 1 / (dataset_size * rows), dtype=torch.float64)
    else:
        others = rows - 1
        weights = torch.full((rows, rows), 1 / others, dtype=torch.float64)
        for i in range(rows):
            weights[i, i] = 1 / dataset_size
            weights[i, (i + 1) % rows] = (dataset_size - others) / (dataset_size * others)
    pairs, log_weights = _log_densities(z, mu, logvar), torch.log(weights)
    whole = torch.logsumexp(pairs.sum(2) + log_weights, 1)
    return whole, torch.logsumexp(pairs + log_weights[:, :, None], 1)


def aggregate_log_densities(draw: Draw):
    given, options = _aggregate(draw)
    return vae_fast.aggregate_log_densities, given | options, _aggregate_truth, tuple(given)


def total_correlation(draw: Draw):
    given, options = _aggregate(draw)

    def truth(**arguments):
        whole, parts = _aggregate_truth(**arguments)
        return ((whole - parts.sum(1)).mean(),)

    return vae_fast.total_correlation, given | options, truth, tuple(given)


def decomposed_kl(draw: Draw):
    given, options = _aggregate(draw)

    def truth(z, mu, logvar, **options):
        whole, parts = _aggregate_truth(z, mu, logvar, **options)
        own = torch.diagonal(_log_densities(z, mu, logvar).sum(2))
        prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
        marginals = parts.sum(1)
        terms = own - whole, whole - marginals, marginals - prior
        return tuple(term.mean() for term in terms)

    return vae_fast.decomposed_kl, given | options, truth, tuple(given)


def mmd(draw: Draw):
    rows, others, columns = (
        draw.random.randint(2, 25),
        draw.random.randint(2, 25),
        draw.random.randint(1, 9),
    )
    dtype = draw.one_of(FLOATS)
    given = {"x": draw.floats((rows, columns), dtype), "y": draw.floats((others, columns), dtype)}
    options = {
        "kernel": draw.one_of(("rbf", "imq")), "bandwidths": draw.one_of(((1.0,), (0.5, 2.0))),
        "unbiased": draw.chance(0.5),
    }  # fmt: skip

    def truth(x, y, kernel, bandwidths, unbiased):
        def mean(a, b, same):
            off = ((a[:, None] - b[None]) ** 2).sum(2)
            values = sum(
                torch.exp(-off / (2 * h * h)) if kernel == "rbf" else 2 * h * h / (2 * h * h + off)
                for h in bandwidths
            ) / len(bandwidths)
            if same and unbiased:
                return (values.sum() - torch.diagonal(values).sum()) / (len(a) * (len(a) - 1))
            return values.mean()

        return (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False),)

    return vae_fast.mmd, given | options, truth, tuple(given)


def nearest_code(draw: Draw):
    rows, codes, columns = (draw.random.randint(1, 30) for _ in range(3))
    dtype = draw.one_of(FLOATS)
    given = {
        "x": draw.floats((rows, columns), dtype),
        "codes": draw.floats((codes, columns), dtype),
    }
    # Distances alone: of two that are as near, either is right.
    function = lambda **a: (vae_fast.nearest_code(**a)[1],)

    def truth(x, codes):
        off = ((x[:, None] - codes[None]) ** 2).sum(2)
        nearest = off.nan_to_num(torch.inf).argmin(1)  # a NaN is near to none
        return (off.gather(1, nearest[:, None])[:, 0],)

    return function, given, truth, ()


GENERATORS = {
    function.__name__: function
    for function in (
        aggregate_log_densities, decomposed_kl, mixture_log_density, mmd, nearest_code,
        total_correlation,
    )
}  # fmt: skip
