"""Which samples of custom data are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def held_out(
    count: int, part: float, seed: int, labels: Sequence[int] | None = None
) -> torch.Tensor:
    """The held-out samples, ascending, drawn by the seed: the same fraction of every class.

    A class with at least two samples gives at least one. The draw depends only on the count and the
    labels. Samples without a label (-1) form a class.

    Args:
        part: between 0 and 1.
        labels: (count,) integers, or None.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order[: held_out_size(count, part)].sort().values
    shuffled = torch.as_tensor(labels)[order]
    by_class = torch.argsort(shuffled, stable=True)
    found = []
    for members in by_class.split(torch.unique(shuffled, return_counts=True)[1].tolist()):
        if len(members) > 1:
            found.append(order[members[: held_out_size(len(members), part)]])
    # If every class has one sample, classes are ignored.
    return torch.cat(found).sort().values if found else held_out(count, part, seed)


def held_out_size(count: int, part: float) -> int:
    """The number of held-out samples: rounded down, at least 1, never all."""
    return min(count - 1, max(1, int(count * part)))


def has_label_runs(labels: torch.Tensor) -> bool:
    """Whether equal labels are adjacent far more often than in a random order."""
    counts = torch.unique(labels, return_counts=True)[1].double()
    expected = len(labels) * (1 - float((counts / counts.sum()).square().sum()))
    return 1 + int((labels[1:] != labels[:-1]).sum()) < expected / 4
