"""Every random number generator a step may draw from: torch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def state(device: torch.device) -> dict[str, Any]:
    """The generators' states, as a tree that a checkpoint can hold."""
    legacy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = legacy
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: dict[str, Any], device: torch.device) -> None:
    """The inverse of ``state``. A generator without a saved state is not changed."""
    torch.set_rng_state(states["torch"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))
    random.setstate(states["python"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def mixed(*key: int) -> int:
    """One seed from several numbers. On the CPU torch uses only a seed's lower 32 bits, so the
    numbers must be mixed; concatenated, they would give every rank the same noise."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_rank(seed: int, rank: int, step: int = 0) -> None:
    """Give each rank of a run its own noise; rank 0 continues as a single process would.

    Args:
        step: the step at which a run resumes without its saved generators, so that its noise
            differs from that of its first steps.
    """
    own = mixed(seed, rank, step)
    np.random.seed(own & 0xFFFFFFFF)
    random.seed(own)
    if rank > 0 or step > 0:
        torch.manual_seed(own)


@contextmanager
def forked(seed: int, rank: int = 0) -> Iterator[None]:
    """Seed torch within the block; its draws do not change the generators outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(mixed(seed, rank) if rank > 0 else seed)
        yield
