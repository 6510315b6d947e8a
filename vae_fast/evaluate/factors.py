"""Scores of disentanglement: DCI, SAP, and modularity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_fast.evaluate.disentanglement import _check, mutual_information
from vae_fast.evaluate.latents import mutual_information_bins


class DCI(NamedTuple):
    """Each in [0, 1]: whether a dimension encodes one factor; whether a factor is in one dimension;
    how well the codes predict the factors (R^2 on the held-out half of the data)."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(codes: Tensor, factors: Tensor, *, penalty: float = 0.02) -> DCI:
    """Eastwood & Williams 2018, section 2, by the lasso: the size of a coefficient is the
    importance of a dimension for a factor.

    Args:
        codes: posterior means (N, D), D of 2 or more. factors: integers (N, F).
        penalty: weight of the coefficients' sizes, for codes and factors of standard deviation 1.
    """
    _check(codes, factors)
    if not penalty >= 0:
        raise ValueError(f"penalty can't be negative, got {penalty}")
    z, v = _standard(codes), _standard(_varying(factors))
    half = len(z) // 2
    weights = lasso(z[:half], v[:half], penalty)
    off = (z[half:] @ weights - v[half:]).square().mean(0)
    spread = v[half:].var(0, correction=0).clamp_min(1e-12)
    informativeness = float((1 - off / spread).clamp(0, 1).mean())
    disentanglement, completeness = dci_of_importance(weights.abs())
    return DCI(disentanglement, completeness, informativeness)


def dci_of_importance(importance: Tensor) -> tuple[float, float]:
    """Disentanglement and completeness of non-negative importances (D, F) (equations 2 and 3).
    Dimensions and factors of zero importance have no weight."""
    r = importance.double()
    total = r.sum()
    if total == 0:
        return 0.0, 0.0

    def scores(rows: Tensor) -> Tensor:
        p = rows / rows.sum(1, keepdim=True).clamp_min(1e-30)
        if rows.shape[1] == 1:
            return torch.ones(len(rows), dtype=r.dtype)
        count = torch.tensor(float(rows.shape[1]), dtype=r.dtype)
        return 1 + torch.xlogy(p, p).sum(1) / count.log()

    weights = r.sum(1) / total
    disentanglement = float((weights * scores(r)).sum())
    found = r.sum(0) > 0
    return disentanglement, float(scores(r.t())[found].mean())


def lasso(z: Tensor, v: Tensor, penalty: float, *, steps: int = 500) -> Tensor:
    """argmin_W |z W - v|^2 / (2 N) + penalty |W|_1, (D, F), by FISTA (Beck & Teboulle 2009)."""
    n = len(z)
    gram, target = z.t() @ z / n, z.t() @ v / n
    rate = 1 / float(torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12))
    w = ahead = torch.zeros_like(target)
    t = 1.0
    for _ in range(steps):
        moved = ahead - rate * (gram @ ahead - target)
        new = moved.sign() * (moved.abs() - rate * penalty).clamp_min(0)
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = new + (t - 1) / t_new * (new - w)
        w, t = new, t_new
    return w


def sap(codes: Tensor, factors: Tensor) -> float:
    """The attribute's predictability from its best dimension minus that from the second best, in
    [0, 1].

    Kumar et al. 2018, section 3; predictability is the squared correlation. It uses a factor's
    numbers, so leave out a factor whose order has no meaning.
    """
    _check(codes, factors)
    z, v = _standard(codes), _standard(_varying(factors))
    scores = (z.t() @ v / len(z)).square()
    best = scores.topk(2, dim=0).values
    return float((best[0] - best[1]).mean())


def modularity(codes: Tensor, factors: Tensor, *, bins: int = 20) -> float:
    """1 minus a dimension's information about other factors relative to that about its main factor
    (Ridgeway & Mozer 2018, section 3), in [0, 1]; the mean over dimensions.

    A dimension without information counts as 0.
    """
    _check(codes, factors)
    factors = _varying(factors)
    if factors.shape[1] < 2:
        raise ValueError("modularity needs two factors that vary")
    binned = mutual_information_bins(codes.double(), bins)
    m = torch.tensor([[mutual_information(z, f) for f in factors.t()] for z in binned.t()])
    first = m.max(1).values.square()
    others = m.square().sum(1) - first
    scores = 1 - others / (first * (factors.shape[1] - 1)).clamp_min(1e-30)
    return float(torch.where(first > 1e-20, scores, 0.0).mean())


def _varying(factors: Tensor) -> Tensor:
    vary = (factors != factors[:1]).any(0)
    if not vary.any():
        raise ValueError(
            f"no factor varies in these {len(factors)} samples: take more of them, or shuffled ones"
        )
    return factors[:, vary]


def _standard(t: Tensor) -> Tensor:
    t = t.double()
    return (t - t.mean(0)) / t.std(0, correction=0).clamp_min(1e-12)
