"""Some of a data set's samples: the first ones, or rows that stand for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vae_fast.data.batches import Batch, Batches
from vae_fast.data.datasets import DatasetData, known_labels
from vae_fast.data.splits import has_label_runs


def representative_rows(data: Any, n: int | None) -> torch.Tensor | None:
    """The rows of ``n`` samples, evenly spaced, if the data are sorted by class: the first n would be
    of a few classes. None if the first n will do: of other data, and for all samples."""
    if n is None or n >= len(data):
        return None
    found = known_labels(data) if isinstance(data, DatasetData) else getattr(data, "labels", None)
    try:
        labels = torch.as_tensor(np.asarray(found if found is not None else []))
    except (TypeError, ValueError):
        return None
    if labels.shape != (len(data),) or labels.is_floating_point() or not has_label_runs(labels):
        return None
    return torch.arange(n) * len(data) // n


def take(batches: Batches, n: int | None, rows: torch.Tensor | None = None) -> Batch:
    """These rows of a pass, ascending; without ``rows`` the first ``n`` samples, None for all."""
    alike = not batches.binarize and batches.augment is None  # in whatever batch a sample is
    if rows is not None and alike and hasattr(batches.data, "select"):
        # The others need not be read: those of a folder would all be decoded.
        some, size = batches.data.select(rows), batches.batch_size
        return take(Batches(some, size, shuffle=False, device=batches.device, unit=batches.unit), n)
    images, labels, served = [], [], 0
    wanted = None if rows is None else int(rows[-1]) + 1
    for batch in batches:
        here: Any = slice(None)
        if rows is not None:
            here = rows[(rows >= served) & (rows < served + len(batch.images))] - served
        images.append(batch.images[here])
        labels.append(None if batch.labels is None else batch.labels[here])
        served += len(batch.images)
        if (end := n if wanted is None else wanted) is not None and served >= end:
            break
    known = [part for part in labels if part is not None]
    given = torch.cat(known)[:n] if len(known) == len(labels) else None
    return Batch(torch.cat(images)[:n], given)
