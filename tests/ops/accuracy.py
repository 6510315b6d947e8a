"""The accuracy that every op must have, and helpers that the tests of the ops share.

The bar: against the truth, an op's largest error in ulps of its result is at most twice that of
plain PyTorch in the same dtype, plus one. The truth comes from formulas that are written here a
second time, in float64, or in numpy's longdouble (80 bits on x86) for float64 itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vae_fast import reference

LONG = np.longdouble
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "sum", "batchmean")
# Less than a vector, one vector and a bit, whole blocks, several chunks; one sample; none at all.
SHAPES = ((1, 1), (7,), (3, 7, 5), (128, 20), (41, 401), (5, 1031), (0, 5), (5, 0))
LARGE = (512, 392)  # for float32 alone: other dtypes would take minutes


def shapes_of(dtype: torch.dtype, large: bool = True) -> tuple[tuple[int, ...], ...]:
    return (*SHAPES, LARGE) if large and dtype == torch.float32 else SHAPES


# digits of the significand, smallest normal exponent
_FORMAT = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def exact(t: Tensor) -> np.ndarray:
    """The values in the precision of the truth: float64, and longdouble for float64 itself."""
    values = t.detach().cpu().to(torch.float64).numpy()
    return values.astype(LONG) if t.dtype == torch.float64 else values


def ulps(result: Tensor, truth: np.ndarray, size: np.ndarray | None = None) -> np.ndarray:
    """The error of each element, in units of the last place of the truth in ``result``'s dtype.

    ``size``: if the truth is a sum whose terms cancel, the size of the terms; its units are used
    then. NaN must be NaN, and infinity must be infinity. A value too large for the dtype must be
    its largest number or infinity. Any other result has an infinite error.
    """
    digits, smallest = _FORMAT[result.dtype]
    largest = LONG(torch.finfo(result.dtype).max)
    a = exact(result)
    assert a.shape == truth.shape, (a.shape, truth.shape)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(truth if size is None else size)
        unit = np.ldexp(truth.dtype.type(1), np.maximum(exponent - 1, smallest) - digits + 1)
        error = np.abs(a - truth) / unit
        too_large = (np.abs(truth) > largest) & (np.sign(a) == np.sign(truth))
        too_large &= np.abs(a) >= largest
    error = np.where((a == truth) | (np.isnan(a) & np.isnan(truth)) | too_large, 0, error)
    return np.where(np.isnan(error), np.inf, error)


class Bar:
    """What a result is compared with: the truth and plain PyTorch's error. ``size``: see ``ulps``.

    A bar that is kept serves every implementation, which saves most of a test's time.
    """

    def __init__(self, eager: Tensor, truth: np.ndarray, size: np.ndarray | None = None) -> None:
        self.truth, self.size, self._eager = truth, size, eager
        # In half precision plain PyTorch overflows and divides by zero: there it sets no bar.
        values = exact(eager)
        self.usable = np.isfinite(values)
        with np.errstate(all="ignore"):
            self._off = np.abs(values - truth)

        self._in_ulps: dict[torch.dtype, float] = {}

    def ulps(self, dtype: torch.dtype) -> float:
        """Plain PyTorch's largest error, rounded to ``dtype``."""
        if dtype not in self._in_ulps:
            errors = ulps(self._eager.to(dtype), self.truth, self.size)[self.usable]
            self._in_ulps[dtype] = float(errors.max()) if errors.size else 0.0
        return self._in_ulps[dtype]

    def limit(self, dtype: torch.dtype, coarse: float) -> tuple[np.ndarray, float]:
        """Which elements ``dtype`` can hold, and how far off one of them may be."""
        format = torch.finfo(dtype)
        finite = np.isfinite(self.truth) & (np.abs(self.truth) < format.max)
        if not finite.any():
            return finite, math.inf
        limit = coarse * format.eps * np.abs(self.truth[finite]).max() + format.smallest_normal
        if self.usable[finite].any():
            limit += 2 * self._off[finite & self.usable].max()
        return finite, limit


class Accuracy:
    """Collects errors of an op and of plain PyTorch over many shapes, then compares the largest.

    It collects, because either may be right by luck on a few elements.
    """

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {}

    def add(
        self,
        name: str,
        result: Tensor,
        eager: Tensor,
        truth: np.ndarray,
        coarse: float = 64.0,
        size: np.ndarray | None = None,
    ) -> None:
        self.hold(name, result, Bar(eager, truth, size), coarse)

    def hold(self, name: str, result: Tensor, bar: Bar, coarse: float = 64.0) -> None:
        """``coarse`` bounds each element's error in epsilons of the largest: a wrong element of a
        small tensor must not hide behind what cancellation does to a large one."""
        if bar.truth.size == 0:
            assert result.numel() == 0
            return
        error = ulps(result, bar.truth, bar.size)
        finite, limit = bar.limit(result.dtype, coarse)
        if finite.any():
            off = np.abs(exact(result)[finite] - bar.truth[finite]).max()
            assert off <= limit, f"{name} {bar.truth.shape}: off by {off}, where {limit} is allowed"
        worst = self.errors.setdefault(name, [0.0, 0.0])
        worst[0] = max(worst[0], float(error.max()))
        worst[1] = max(worst[1], bar.ulps(result.dtype))

    def check(self) -> None:
        assert self.errors
        for name, (ours, eager) in self.errors.items():
            assert ours <= 2 * eager + 1, f"{name}: {ours:.4g} ulps, plain PyTorch {eager:.4g}"


# --- calling -------------------------------------------------------------------------------------


def call(
    op: Callable, inputs: Sequence[Tensor], upstream: Sequence[Tensor | None] | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The outputs of ``op`` and the gradients of its inputs.

    An upstream of None is left out, and so is an output that depends on no input.
    """
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = op(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if upstream is None:
        upstream = [torch.ones_like(o) for o in outputs]
    used = [
        (o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad
    ]
    grads = torch.autograd.grad(
        [o for o, _ in used], leaves, [g for _, g in used], allow_unused=True
    )
    return [o.detach() for o in outputs], list(grads)


def reduced(values: np.ndarray, reduction: str) -> np.ndarray:
    """``reference.reduce`` of longdouble terms."""
    samples = values.shape[0] if values.ndim >= 2 else 1
    rows = values.reshape(samples, math.prod(values.shape[1:])) if values.ndim >= 2 else values
    with np.errstate(all="ignore"):
        if reduction == "none":
            return np.asarray(rows.sum(-1))
        return np.asarray(rows.sum() / (samples if reduction == "batchmean" else 1))


def spread(upstream: Tensor, shape: tuple[int, ...], reduction: str) -> np.ndarray:
    """The gradient that reaches each element from the upstream gradient of a reduced loss."""
    g = exact(upstream)
    if reduction == "none" and len(shape) >= 2:
        return np.broadcast_to(g.reshape(-1, *[1] * (len(shape) - 1)), shape)
    if reduction == "batchmean" and len(shape) >= 2 and shape[0]:
        g = g / shape[0]
    return np.broadcast_to(g, shape)


# --- layouts -------------------------------------------------------------------------------------


def layouts(t: Tensor) -> dict[str, Tensor]:
    """The values of a 2-D ``t`` in every kind of memory layout."""
    rows, cols = t.shape
    sliced_rows = t.new_zeros(2 * rows, cols)[::2]
    sliced_cols = t.new_zeros(rows, 3 * cols + 2)[:, 1:-1:3]
    margin = t.new_zeros(rows + 2, cols + 3)[1:-1, 2:-1]
    transposed = t.new_zeros(cols, rows).t()
    offset = t.new_zeros(rows * cols + 1)[1:].view(rows, cols)
    views = {
        "every other row": sliced_rows,
        "every third column": sliced_cols,
        "inside a margin": margin,
        "transposed": transposed,
        "one element into a storage": offset,
    }
    for view in views.values():
        view.copy_(t)
    return views


# --- the truth -----------------------------------------------------------------------------------


def bernoulli_terms(
    logits: Tensor, target: Tensor, from_logits: bool
) -> tuple[np.ndarray, np.ndarray]:
    """-log Bernoulli(target | logits) of each element, and its derivative in the logits."""
    x, t = exact(logits), exact(target)
    if target.dtype == torch.uint8:
        t = t.astype(x.dtype) / 255
    with np.errstate(all="ignore"):
        if from_logits:
            e = np.exp(-np.abs(x))
            wrong, sigma = np.where(x >= 0, 1 - t, t), e / (1 + e)
            grad = np.where(x >= 0, wrong - sigma, sigma - wrong)
            return np.abs(x) * wrong + np.log1p(e), grad
        log_p, log_q = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
        nll = -(t * log_p + (1 - t) * log_q)
        return nll, (x - t) / np.maximum(x * (1 - x), 1e-12)


def eps_of(key: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The key's normals: Box-Muller on the whole angle, as textbooks have it."""
    n = math.prod(shape)
    words = reference.random_words(key.cpu(), n + (-n) % 4).numpy().reshape(-1, 2).astype(LONG)
    radius = np.sqrt(-2 * np.log((words[:, 0] + LONG(0.5)) / LONG(2) ** 32))
    angle = 2 * LONG("3.14159265358979323846264338327950288") * words[:, 1] / LONG(2) ** 32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return pairs.reshape(-1)[:n].reshape(shape)


def kl_terms(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None = None, prior_logvar: Tensor | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """KL of each element, and its derivatives in mu, logvar and, if given, the prior's two."""
    m, lv = exact(mu), exact(logvar)
    with np.errstate(all="ignore"):
        if prior_mu is None:
            return (np.expm1(lv) - lv + m * m) / 2, [m, np.expm1(lv) / 2]
        d, ratio = m - exact(prior_mu), lv - exact(prior_logvar)
        precision = np.exp(-exact(prior_logvar))
        distance = d * d * precision
        kl = (np.expm1(ratio) - ratio + distance) / 2
        grad_prior_logvar = -(np.expm1(ratio) + distance) / 2
        return kl, [d * precision, np.expm1(ratio) / 2, -d * precision, grad_prior_logvar]
