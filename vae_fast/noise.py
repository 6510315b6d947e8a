"""Noise keys: the source of the kernels' randomness.

eps is a pure function of a key and an element's index (Philox4x32-10, Salmon et al. 2011, then
Box-Muller), so the holder of the key can compute the same noise again. The backward pass does so
instead of storing eps, except for the few MiB that the CPU's caches hold, where reading costs less.
The key is drawn from torch's generator, so ``torch.manual_seed``, activation checkpointing
and CUDA-graph replay behave as with ``torch.randn``.
"""

from __future__ import annotations

import torch

_INT64 = torch.iinfo(torch.int64)


def new_key(
    device: torch.device | str | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw a fresh noise key: an int64 tensor of 2 elements on ``device``.

    The first element keys Philox, the second selects a stream. Under CUDA-graph capture the draw is
    part of the graph, so each replay has a new key.
    """
    return torch.randint(
        _INT64.min, _INT64.max, (2,), dtype=torch.int64, device=device, generator=generator
    )


def check_key(key: torch.Tensor, device: torch.device, of: str = "mu") -> torch.Tensor:
    """Return ``key``, contiguous, if it is a noise key on ``device``, the device of ``of``; else
    raise."""
    if not isinstance(key, torch.Tensor) or key.dtype != torch.int64 or key.shape != (2,):
        found = (
            f"{key.dtype} tensor of shape {tuple(key.shape)}"
            if isinstance(key, torch.Tensor)
            else type(key).__name__
        )
        raise TypeError(
            f"noise_key must be an int64 tensor of 2 elements (vae_fast.noise.new_key makes one), "
            f"got {found}"
        )
    if key.device != device:
        raise ValueError(
            f"noise_key is on {key.device}, {of} on {device}: draw it there with "
            f"vae_fast.noise.new_key({str(device)!r})"
        )
    return key.contiguous()
