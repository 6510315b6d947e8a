"""Rows of a sparse matrix, made dense on the matrix's device when they are gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """A matrix (N, D) in compressed sparse rows (CSR), which stands where images would.

    Row i has the ``values`` from ``starts[i]`` to ``ends[i]``, in the ``columns`` of the same range.
    So a choice of rows, such as a split, shares values with the matrix. Only rows that are asked for
    become dense.

    Attributes:
        starts, ends: (N,) int64. columns: (nnz,) int32 or int64. values: (nnz,) float32.
        width: D.
    """

    starts: Tensor
    ends: Tensor
    columns: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice | Tensor) -> SparseRows:
        return replace(self, starts=self.starts[rows], ends=self.ends[rows])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.width))

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def is_floating_point(self) -> bool:
        return True

    def range(self) -> tuple[float, float]:
        """The least and the largest value, including the 0 of values that are not stored."""
        if not len(self.values):
            return 0.0, 0.0
        low, high = (float(v) for v in torch.aminmax(self.values))
        return min(low, 0.0), max(high, 0.0)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """The rows (B,), dense: (B, D)."""
        dense = torch.zeros(len(rows), self.width, dtype=self.dtype, device=self.device)
        starts = self.starts.index_select(0, rows)
        counts = self.ends.index_select(0, rows) - starts
        total = counts.sum()
        at = torch.repeat_interleave(starts - (counts.cumsum(0) - counts), counts)
        at += torch.arange(int(total), device=self.device)
        flat = torch.repeat_interleave(
            torch.arange(len(rows), device=self.device) * self.width, counts
        )
        flat += self.columns.index_select(0, at)
        dense.view(-1).index_copy_(0, flat, self.values.index_select(0, at))
        return dense

    def to_dense(self) -> Tensor:
        """All rows."""
        return self.index_select(0, torch.arange(len(self), device=self.device))

    def split(self, rows: int) -> Iterator[Tensor]:
        """All rows, in dense blocks of ``rows`` rows."""
        starts = range(0, len(self), rows)
        return (self[start : start + rows].to_dense() for start in starts)

    def to(self, device: torch.device) -> SparseRows:
        """The rows on a device. A part of a matrix sends only its own values."""
        if device == self.device or device.type == self.device.type == "cpu":
            return self
        own = self._compact()
        starts, ends, columns, values = (
            t.to(device) for t in (own.starts, own.ends, own.columns, own.values)
        )
        return SparseRows(starts, ends, columns, values, self.width)

    def _compact(self) -> SparseRows:
        counts = self.ends - self.starts
        if int(counts.sum()) == len(self.values):
            return self
        ends = counts.cumsum(0)
        at = torch.repeat_interleave(self.starts - (ends - counts), counts)
        at += torch.arange(len(at), device=at.device)
        return SparseRows(ends - counts, ends, self.columns[at], self.values[at], self.width)
