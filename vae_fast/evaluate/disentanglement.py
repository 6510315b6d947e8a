"""Scores of disentanglement: MIG, and the FactorVAE score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae_fast.evaluate.latents import mutual_information_bins
from vae_fast.functional.checks import check_finite


def mutual_information(a: Tensor, b: Tensor) -> float:
    """I(a; b) of two integer vectors (N,), in nats, from their joint histogram."""
    n_b = int(b.max()) + 1
    joint = torch.bincount(a * n_b + b, minlength=(int(a.max()) + 1) * n_b).double()
    joint = (joint / joint.sum()).view(-1, n_b)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / independent[seen]).log()).sum())


def entropy(values: Tensor) -> float:
    """H of an integer vector (N,), in nats."""
    p = torch.bincount(values).double()
    p = p[p > 0] / p.sum()
    return float(-(p * p.log()).sum())


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = 20) -> float:
    """MIG: each factor's information in its best dimension minus that in the second best, in [0,
    1].

    Chen et al. 2018, equation 6: the gap divided by the factor's entropy, averaged over factors
    that vary. Codes are binned with equal widths, as in Locatello et al. 2019.

    Args:
        codes: posterior means (N, D), D of 2 or more. factors: integers (N, F).
    """
    _check(codes, factors)
    binned = mutual_information_bins(codes.double(), bins)
    gaps = []
    for factor in factors.t():
        h = entropy(factor)
        if h == 0.0:
            continue
        information = sorted((mutual_information(z, factor) for z in binned.t()), reverse=True)
        gaps.append((information[0] - information[1]) / h)
    if not gaps:
        raise ValueError(
            f"no factor varies in these {len(factors)} samples: take more of them, or shuffled ones"
        )
    return sum(gaps) / len(gaps)


def factor_vae_score(
    encode: Callable[[Tensor], Tensor],
    draw: Callable[[int, int], tuple[Tensor, int]],
    num_factors: int,
    *,
    scales: Tensor,
    votes: int = 800,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """Accuracy of predicting which factor was held fixed, from the dimension that varies least.

    Kim & Mnih 2018, section 3.1: majority votes, on half of the batches, scored on the others;
    dimensions with a scale of 0.05 or less, which are hardly used, are left out.

    Args:
        encode: x to posterior means (N, D).
        draw: (factor, n) to n samples that share that factor, and the factor's index.
        scales: each dimension's standard deviation over the data, (D,).
    """
    active = (scales > 0.05).nonzero().flatten()
    if len(active) == 0:
        return 1.0 / num_factors
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(2, len(active), num_factors)
    for vote in range(votes):
        chosen = int(torch.randint(num_factors, (1,), generator=generator))
        x, factor = draw(chosen, batch_size)
        spread = (encode(x)[:, active] / scales[active]).var(0)
        counts[vote % 2, int(spread.argmin()), factor] += 1
    majority = counts[0].argmax(1)
    right = counts[1].gather(1, majority.unsqueeze(1)).sum()
    return float(right / counts[1].sum())


def factor_vae_score_of_codes(
    codes: Tensor,
    factors: Tensor,
    *,
    votes: int = 800,
    batch_size: int = 64,
    seed: int = 0,
) -> float:
    """The FactorVAE score from given samples: each batch is drawn, with replacement, from the
    samples that share a value of the fixed factor. Factors that do not vary are left out.

    Args:
        codes: posterior means (N, D). factors: integers (N, F).
    """
    _check(codes, factors)
    varying = [f for f in range(factors.shape[1]) if len(factors[:, f].unique()) > 1]
    if not varying:
        raise ValueError(
            f"no factor varies in these {len(factors)} samples: take more of them, or shuffled ones"
        )
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int, n: int) -> tuple[Tensor, int]:
        column = factors[:, varying[number]]
        value = column[int(torch.randint(len(column), (1,), generator=generator))]
        alike = (column == value).nonzero().flatten()
        return codes[alike[torch.randint(len(alike), (n,), generator=generator)]], number

    return factor_vae_score(
        lambda chosen: chosen,
        draw,
        len(varying),
        scales=codes.std(0),
        votes=votes,
        batch_size=batch_size,
        seed=seed,
    )


def _check(codes: Tensor, factors: Tensor) -> None:
    if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors):
        raise ValueError(
            f"codes must be (N, D) and factors (N, F) with the same N, got {tuple(codes.shape)} "
            f"and {tuple(factors.shape)}"
        )
    if codes.shape[1] < 2:
        raise ValueError(f"codes must have a latent_dim of 2 or more, got {codes.shape[1]}")
    if factors.is_floating_point():
        raise TypeError(f"factors must be integers, got {factors.dtype}")
    if len(codes) == 0:
        raise ValueError("there are no codes to score")
    if factors.min() < 0:
        raise ValueError(
            f"a factor's values must be numbered from 0, got {int(factors.min())}: number them anew"
        )
    check_finite("codes", codes)
