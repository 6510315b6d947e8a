"""This machine's memory bandwidth, to which every row's share refers."""

from __future__ import annotations

import torch

from benchmarks.case import Contender
from benchmarks.inputs import last_level_cache
from benchmarks.timing import Budget, measure


def measure_bandwidth(device: torch.device, budget: Budget) -> dict[str, float]:
    """GB/s (10^9 bytes) of ``torch.add(a, b, out=c)`` and ``c.copy_(a)``, far out of the cache.

    Three streams of float32, 12 bytes an element, and two, 8 bytes; the memory is touched before.
    """
    elements = max(1 << 24, last_level_cache(device))
    a, b, c = (torch.ones(elements, device=device) for _ in range(3))
    contenders = [
        Contender("add(out=)", lambda _: torch.add(a, b, out=c), bytes=12 * elements),
        Contender("copy", lambda _: c.copy_(a), bytes=8 * elements),
    ]
    timings = measure(contenders, {c.name: [None] for c in contenders}, device, budget)
    return {c.name: c.bytes / timings[c.name].median / 1e9 for c in contenders}
