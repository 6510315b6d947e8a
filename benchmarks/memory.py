"""Peak memory of one call: what it allocates beyond its inputs, results included."""

from __future__ import annotations

import os
from typing import Any

import torch

import vae_fast
from benchmarks.case import Contender


def peak_bytes(contender: Contender, own: Any, device: torch.device) -> int | None:
    """Bytes at the highest point of one call, or None if they can't be measured.

    On a GPU, torch's allocator gives the number. On the CPU it is exact: torch's profiler sees every
    allocation and release, and what our kernels' own pool handed out, which the profiler does not
    see, is added. A contender that torch does not allocate for reports its own number.
    """
    if contender.outputs is None:
        return None
    if contender.peak_bytes is not None:
        return contender.peak_bytes(own)

    def call() -> Any:
        return contender.run(own if contender.prepare is None else contender.prepare(own))

    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    pool = own_pool()
    if pool is not None:
        pool.release_kept()
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    # The results are dead by now, so the pool holds all memory that the call took from it. Memory
    # that the call returned and took again counts once.
    pooled = 0 if pool is None else pool.kept_bytes()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return highest(changes) + pooled


def own_pool() -> Any:
    """The native library, if it keeps dead outputs in a pool of its own; else None."""
    if vae_fast.backend.native_reason("cpu") is not None:
        return None
    library = vae_fast.backend.library("cpu")
    return library if hasattr(library, "kept_bytes") else None


def highest(changes: list[tuple[int, int]]) -> int:
    """The highest running sum of (time, bytes) changes; equal times keep their order."""
    current = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        current += size
        peak = max(peak, current)
    return peak
