"""The memory layouts that the kernels read, and copies into these layouts."""

from __future__ import annotations

import torch


def is_dense(t: torch.Tensor) -> bool:
    """Whether samples are outermost and each sample's features are dense in memory."""
    if t.is_contiguous():
        return True
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


def dense(t: torch.Tensor) -> torch.Tensor:
    """``t`` itself if a kernel can read it, else a contiguous copy."""
    return t if is_dense(t) else t.contiguous()


def like(t: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``t`` in the memory layout of ``other``, which is dense and of the same shape."""
    if other.is_contiguous():
        return t.contiguous()
    return t.contiguous(memory_format=torch.channels_last)


def memory_format(t: torch.Tensor) -> torch.memory_format:
    """The memory format of ``t``, (N, C, ...); contiguous_format if ``t`` must be copied."""
    if not t.is_contiguous():
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
        if last is not None and t.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format
