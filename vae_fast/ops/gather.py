"""The native gather_batch: rows of a data set of bytes. Bytes have no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast.ops.fake import register_fake

_gather_batch = torch.ops.vae_fast.gather_batch.default

Maybe = torch.Tensor | None


def gather_batch(
    data: Tensor, index: Tensor, mode: int, key: Maybe, first_row: int | Tensor
) -> Tensor:
    if isinstance(first_row, torch.Tensor):
        return _gather_batch(data, index, mode, key, 0, first_row)
    return _gather_batch(data, index, mode, key, first_row, None)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@register_fake("gather_batch")
def _(data: Any, index: Any, mode: Any, key: Tensor, first_row: Any, first_row_tensor: Any) -> Any:
    dtype = (data.dtype, torch.float32, torch.bool)[mode]
    return data.new_empty((index.shape[0], *data.shape[1:]), dtype=dtype)
