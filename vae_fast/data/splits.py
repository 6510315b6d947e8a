"""Which samples of one's own data are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def held_out(
    count: int, part: float, seed: int, labels: Sequence[int] | None = None
) -> torch.Tensor:
    """The samples held out, ascending: drawn by the seed, from every class the same part.

    A class gives at least one sample if it has two. The draw depends on the count and the labels
    alone. Samples without a label (-1) are a class of their own.

    Args:
        part: between 0 and 1.
        labels: (count,) integers, or None.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order[: size_of(count, part)].sort().values
    labels = torch.as_tensor(labels)[order]
    by_class = torch.argsort(labels, stable=True)
    found = []
    for members in by_class.split(torch.unique(labels, return_counts=True)[1].tolist()):
        if len(members) > 1:
            found.append(order[members[: size_of(len(members), part)]])
    # Classes of one sample each: as if there were no classes.
    return torch.cat(found).sort().values if found else held_out(count, part, seed)


def size_of(count: int, part: float) -> int:
    """How many of so many samples are held out: rounded down, at least 1, and never all."""
    return min(count - 1, max(1, int(count * part)))


def in_runs(labels: torch.Tensor) -> bool:
    """Whether equal labels lie together, far more than in a random order."""
    counts = torch.unique(labels, return_counts=True)[1].double()
    expected = len(labels) * (1 - float((counts / counts.sum()).square().sum()))
    return 1 + int((labels[1:] != labels[:-1]).sum()) < expected / 4
