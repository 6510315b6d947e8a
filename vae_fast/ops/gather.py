"""Rows of a data set of bytes, natively: gather_batch. It has no gradient: its inputs are bytes."""

from __future__ import annotations

import torch

from vae_fast.ops.fake import register_fake

_gather_batch = torch.ops.vae_fast.gather_batch.default

Tensor = torch.Tensor
Maybe = torch.Tensor | None


def gather_batch(
    data: Tensor, index: Tensor, mode: int, key: Maybe, first_row: int | Tensor
) -> Tensor:
    if isinstance(first_row, torch.Tensor):
        return _gather_batch(data, index, mode, key, 0, first_row)
    return _gather_batch(data, index, mode, key, first_row, None)


# --- fake kernels: shapes and dtypes for torch.compile -------------------------------------------


@register_fake("gather_batch")
def _(data, index, mode, key, first_row, first_row_tensor):
    dtype = (data.dtype, torch.float32, torch.bool)[mode]
    return data.new_empty((index.shape[0], *data.shape[1:]), dtype=dtype)
