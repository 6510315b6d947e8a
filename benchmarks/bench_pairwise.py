"""The pairwise sums compared with the tensor of pairs in eager PyTorch and torch.compile.

Floors on a CPU, for B rows, K terms and D dimensions, in vectors of w floats at two operations a
cycle and core: a per-dimension log-sum-exp is one exponential and some five operations for each
(i, j, d) in each direction, about 15 forward and 25 backward; a sum over dimensions alone is 4
forward and 10 backward. Memory traffic is that of the rows, which is nothing beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.check import TOLERANCE, all_close, close, in_float64
from benchmarks.inputs import DTYPES, normal
from benchmarks.peers import Op, compiled, ours, torch_contender

DATASET = 60_000
BANDWIDTHS = (1.0, 2.0, 4.0)

# --- the peers' spellings ------------------------------------------------------------------------


def _log_normal(z, mu, logvar):
    """(B, K, D), as implementations of these models have it."""
    distance = (z.unsqueeze(1) - mu.unsqueeze(0)) ** 2
    return -0.5 * (distance * torch.exp(-logvar) + logvar + math.log(2 * math.pi))


def eager_total_correlation(z, mu, logvar):
    pairs = _log_normal(z, mu, logvar)
    b = len(z)
    weight = torch.full((b, b), 1 / (b - 1), dtype=z.dtype, device=z.device)
    row = torch.arange(b, device=z.device)
    weight[row, row] = 1 / DATASET
    weight[row, (row + 1) % b] = (DATASET - b + 1) / (DATASET * (b - 1))
    log_weight = weight.log()
    whole = torch.logsumexp(pairs.sum(2) + log_weight, 1)
    return (whole - torch.logsumexp(pairs + log_weight.unsqueeze(2), 1).sum(1)).mean()


def eager_mixture(z, mu, logvar, logits):
    pairs = _log_normal(z, mu, logvar).sum(2)
    return torch.logsumexp(pairs + torch.log_softmax(logits, 0), 1).sum()


def eager_mmd(x, y):
    def k(a, b):
        squared = ((a.unsqueeze(1) - b.unsqueeze(0)) ** 2).sum(2)
        return sum(torch.exp(-squared / (2 * h * h)) for h in BANDWIDTHS) / len(BANDWIDTHS)

    n, m = len(x), len(y)
    xx, yy = k(x, x), k(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * k(x, y).mean()


def eager_nearest(x, codes):
    """By products, as quantisers have it."""
    with torch.no_grad():
        index = torch.cdist(x, codes).argmin(1)
    return ((x - codes[index]) ** 2).sum()


def our_total_correlation(z, mu, logvar):
    return vae_fast.total_correlation(z, mu, logvar, DATASET)


def our_mixture(*tensors):
    return vae_fast.mixture_log_density(*tensors).sum()


def our_mmd(x, y):
    return vae_fast.mmd(x, y, bandwidths=BANDWIDTHS)


def our_nearest(x, codes):
    return vae_fast.nearest_code(x, codes)[1].sum()


# --- set-up --------------------------------------------------------------------------------------


def _setup(
    op: str,
    mine: Callable,
    peer: Callable,
    shapes: Callable[[Sequence[int]], list[tuple[int, ...]]],
) -> Callable[..., Case]:
    def setup(
        shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
    ) -> Case:
        kind, sizes = DTYPES[dtype], shapes(shape)
        call = Op(wrt=tuple(range(len(sizes))))

        def inputs(seed: int) -> list[torch.Tensor]:
            return [normal(seed, i, s, kind, device) for i, s in enumerate(sizes)]

        def contenders() -> list[Contender | Absence]:
            return [
                ours(mine, call, pass_),
                torch_contender("eager", peer, call, pass_),
                *compiled(peer, call, pass_, device, modes),
            ]

        def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
            exact = [in_float64(t).requires_grad_() for t in inputs]
            # Weights are exponentials of sums over all dimensions, so the tolerance includes their
            # rounding.
            tolerance = 10 * TOLERANCE[kind]
            with vae_fast.set_backend("reference"):  # chunks: the tensor of pairs is too large
                truth = mine(*exact)
                slopes = torch.autograd.grad(truth, exact)
            if outputs.values:
                close(op, outputs.values[0].item(), truth.item(), tolerance)
            if outputs.grads and len(outputs.grads) != len(exact):
                raise WrongResult(f"{len(outputs.grads)} gradients for {len(exact)} inputs")
            for i, (found, slope) in enumerate(zip(outputs.grads, slopes, strict=False)):
                all_close(f"gradient {i} of {op}", found, slope, tolerance)

        elements = math.prod(sizes[0]) + math.prod(sizes[-1])
        moved = sum(math.prod(s) for s in sizes) * kind.itemsize * (1 if pass_ == "value" else 2)
        return Case(
            op, pass_, "x".join(map(str, shape)), dtype, elements, moved, device, inputs,
            contenders, check,
        )  # fmt: skip

    return setup


def _of_mixture(shape: Sequence[int]) -> list[tuple[int, ...]]:
    b, k, d = shape
    return [(b, d), (k, d), (k, d), (k,)]


SETUPS = {
    "total_correlation": _setup(
        "total_correlation", our_total_correlation, eager_total_correlation,
        lambda shape: [tuple(shape)] * 3,
    ),
    "mixture_log_density": _setup("mixture_log_density", our_mixture, eager_mixture, _of_mixture),
    "mmd": _setup("mmd", our_mmd, eager_mmd, lambda shape: [tuple(shape)] * 2),
    "nearest_code": _setup(
        "nearest_code", our_nearest, eager_nearest,
        lambda shape: [(shape[0], shape[2]), (shape[1], shape[2])],
    ),
}  # fmt: skip

NAMES = (OURS, "eager", "compile")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(4),), rounds=10, warmup_rounds=2)
