"""Means, spreads, and rules for comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("there are no values to average")
    return sum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1 in the denominator); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def error_of_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The standard error of mean(a) - mean(b), of independent values."""
    return math.sqrt(spread(a) ** 2 / len(a) + spread(b) ** 2 / len(b))


def not_worse(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ours, where lower is better, are lower or differ by less than two standard errors."""
    return mean(ours) - mean(theirs) <= 2.0 * error_of_difference(ours, theirs)


def clearly_better(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ours, where lower is better, are lower by more than either's spread and by more
    than two standard errors.
    """
    gain = mean(theirs) - mean(ours)
    noise = max(spread(ours), spread(theirs), 2.0 * error_of_difference(ours, theirs))
    return gain > noise


def shown(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± spread`` of several values, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {spread(values):.{digits}f}"
