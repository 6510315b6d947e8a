"""A batch as rows of data on a device, for a step that gathers them itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vae_fast.functional import gather_batch
from vae_fast.types import GatherMode


@dataclass(frozen=True)
class Rows:
    """Rows ``index``, (B,) int64, of ``data``, (N, ...) uint8 or bool on the same device."""

    data: torch.Tensor
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """The gathered batch's shape."""
        return torch.Size((len(self.index), *self.data.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def gathered(self, mode: GatherMode = "bytes") -> torch.Tensor:
        """The batch, as ``gather_batch`` gives it in ``mode``."""
        return gather_batch(self.data, self.index, mode=mode)
