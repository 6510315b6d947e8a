"""Values and derivatives with 100 digits, independent of torch, for tests. This is slow.

Derivatives are central differences, with a relative error of some 1e-60, so only the value needs a
formula. This module needs mpmath, which torch requires too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vae_fast.likelihoods.spec import Truth

DIGITS = 100


def _numbers(t: Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()


def elementwise(nll: Callable[..., Any], *tensors: Tensor) -> Truth:
    """``nll(mpmath.mp, *params, x)`` of each element, and its derivative by each parameter."""
    from mpmath import mp

    arrays = np.broadcast_arrays(*map(_numbers, tensors))
    rows = list(zip(*(a.ravel().tolist() for a in arrays), strict=True))
    params = len(arrays) - 1
    columns = np.empty((params + 1, len(rows)), dtype=np.longdouble)
    with mp.workdps(DIGITS):
        for i, row in enumerate(rows):
            columns[:, i] = [_longdouble(v) for v in _value_and_grads(mp, nll, row, range(params))]
    value, *grads = (c.reshape(arrays[0].shape) for c in columns)
    return value, grads


def positions(nll: Callable[..., Any], planes: Tensor, target: Tensor) -> Truth:
    """``nll(mpmath.mp, planes, values)`` of each position, for planes (N, P, ...) and a target
    (N, values, ...), and its derivative by each plane, in the planes' shape."""
    from mpmath import mp

    p, x = (np.moveaxis(_numbers(t), 1, -1) for t in (planes, target))
    rows = list(
        zip(p.reshape(-1, p.shape[-1]).tolist(), x.reshape(-1, x.shape[-1]).tolist(), strict=True)
    )
    out = np.empty((len(rows), 1 + p.shape[-1]), dtype=np.longdouble)

    def on_row(mp: Any, *values: Any) -> Any:
        return nll(mp, values[: p.shape[-1]], values[p.shape[-1] :])

    with mp.workdps(DIGITS):
        for i, (a, b) in enumerate(rows):
            wanted = range(p.shape[-1])
            out[i] = [_longdouble(v) for v in _value_and_grads(mp, on_row, [*a, *b], wanted)]
    grads = np.moveaxis(out[:, 1:].reshape(p.shape), -1, 1)
    return out[:, 0].reshape(p.shape[:-1]), [grads]


def _value_and_grads(
    mp: Any, nll: Callable[..., Any], row: Sequence[float], wanted: Sequence[int]
) -> list[Any]:
    values = [mp.mpf(v) for v in row]
    if any(map(mp.isnan, values)):
        return [mp.nan] * (1 + len(wanted))
    out = [nll(mp, *values)]
    for j in wanted:
        step = mp.mpf(10) ** (-DIGITS // 3) * (abs(values[j]) or 1)
        beside = [nll(mp, *values[:j], values[j] + s, *values[j + 1 :]) for s in (step, -step)]
        out.append((beside[0] - beside[1]) / (2 * step))
    return out


def _longdouble(v: Any) -> np.longdouble:
    high = float(v)
    if not np.isfinite(high):
        return np.longdouble(high)
    return np.longdouble(high) + np.longdouble(float(v - high))


def log1pexp(mp: Any, x: Any) -> Any:
    """softplus(x)."""
    return mp.log1p(mp.exp(x)) if x < 100 else x + mp.exp(-x)
