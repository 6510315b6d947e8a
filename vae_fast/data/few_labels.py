"""Data with most labels hidden, for semi-supervised learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vae_fast.data.arrays import ArrayData

UNLABELLED = -1


def keep_labels(data: Any, keep: int, *, seed: int = 0, repeat: int = 1) -> ArrayData:
    """The same data with ``keep`` labels in total, equally many of every class, and -1 for the
    others.

    Args:
        data: labelled data in memory.
        keep: number of samples that keep their label. If a class has too few, other classes get
            more.
        seed: the seed of the choice.
        repeat: how often an epoch repeats the samples that keep their label. Of 10,000 samples with
            100 labels, a batch of 100 has one label; with 10 repeats it has ten.

    Raises:
        TypeError: the data is read from disk when needed.
        ValueError: the data has no labels, or fewer than ``keep``.
    """
    if not isinstance(data, ArrayData) or data.mapped:
        raise TypeError(
            f"hiding labels needs data in memory, and {data.name} is read from disk as it is "
            "needed: write -1 for the labels to hide into the data itself"
        )
    if data.labels is None:
        raise ValueError(
            f"{data.name} has no labels, and {keep} are to be kept: give labelled data"
        )
    known = int((data.labels >= 0).sum())
    if not 1 <= keep <= known:
        raise ValueError(
            f"{keep} labels are to be kept, and {data.name} has {known}: keep from 1 to all of them"
        )
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, got {repeat}")
    kept = _balanced(data.labels, keep, seed)
    labels = torch.full_like(data.labels, UNLABELLED)
    labels[kept] = data.labels[kept]
    rows = torch.cat([torch.arange(len(data)), kept.repeat(repeat - 1)])
    return replace(
        data,
        images=data.images if repeat == 1 else data.images[rows],
        labels=labels[rows],
        files=None if data.files is None else [data.files[row] for row in rows.tolist()],
        rows=None,
        name=f"{data.name} with {keep} labels",
    )


def _balanced(labels: Tensor, keep: int, seed: int) -> Tensor:
    """``keep`` samples with labels: each class in turn, its samples in a random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order] >= 0]
    turn = torch.empty_like(order)
    for label in labels[order].unique():
        of_class = labels[order] == label
        turn[of_class] = torch.arange(int(of_class.sum()))
    by_turn = torch.argsort(turn, stable=True)
    return order[by_turn[:keep]].sort().values
