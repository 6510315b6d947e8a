"""k-means, from the op that finds the nearest code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae_fast.functional.pairwise import nearest_code


@torch.no_grad()
def kmeans(
    rows: Tensor, size: int, iterations: int, project: Callable[[Tensor], Tensor] = lambda t: t
) -> Tensor:
    """``size`` centres of rows (N, D), by Lloyd's algorithm (1982) from random rows: (size, D).

    A centre that no row is nearest to stays. Fewer rows than centres are drawn with repetition.

    Args:
        project: applied to the means, such as to normalise them.
    """
    chosen = torch.randperm(len(rows), device=rows.device)[:size]
    if len(rows) < size:
        chosen = torch.randint(len(rows), (size,), device=rows.device)
    centres = rows[chosen]
    for _ in range(iterations):
        index = nearest_code(rows, centres)[0]
        counts = count(index, size, rows.dtype).unsqueeze(1)
        sums = torch.ops.aten.embedding_dense_backward(rows, index, size, -1, False)
        means = project(sums / counts.clamp_min(1))
        centres = torch.where(counts > 0, means, centres)
    return centres


def count(codes: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """How often each of ``size`` values occurs in codes (M,): (size,)."""
    ones = torch.ones(codes.shape, dtype=dtype, device=codes.device)
    return torch.zeros(size, dtype=dtype, device=codes.device).scatter_add_(0, codes, ones)
