"""Inputs: the same for every contender, made from a seed, in more sets than a cache holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
}

MOST_SETS = 64


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + stream)


def normal(
    seed: int,
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    scale: float = 1.0,
) -> torch.Tensor:
    """Normals times ``scale``; made in float32 on the CPU, so that devices get the same."""
    return torch.randn(shape, generator=_generator(seed, stream)).mul_(scale).to(dtype).to(device)


def pixels(
    seed: int, stream: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Images: whole grey values in 0..255 as uint8, or divided by 255."""
    grey = torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator(seed, stream)).to(
        device
    )
    return grey if dtype == torch.uint8 else grey.to(dtype).div_(255)


def last_level_cache(device: torch.device) -> int:
    """Bytes of the largest cache between processor and memory; 32 MB if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=32 << 20)


def sets_to_rotate(set_bytes: int, cache: int) -> tuple[int, bool]:
    """The number of input sets to rotate, and whether they still fit the cache.

    Four times the cache size is enough, because a set is used again only after all others. Small
    inputs would need thousands of sets; they use 64, and the row says so.
    """
    wanted = max(1, math.ceil(4 * cache / max(set_bytes, 1)))
    sets = min(wanted, MOST_SETS)
    return sets, sets * set_bytes < 2 * cache
