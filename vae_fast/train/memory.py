"""Refuse sizes that exceed this machine's memory, before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

LARGE = 10_000  # a size from which a model may be too large; smaller ones are not checked
MOST_LAYERS = 1_000
REPEATED = ("blocks", "layers", "levels")  # options that count repetitions


def check_fits(size: int, what: str, device: torch.device | None = None) -> None:
    """Raise ValueError if ``size`` bytes exceed the memory of the device, or of this machine if
    None."""
    if device is not None and device.type == "cuda":
        most, of = torch.cuda.get_device_properties(device).total_memory, "GPU"
    else:
        most, of = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "machine"
    if size > most:
        raise ValueError(f"{what} would take {size / 2**30:,.0f} GiB, and this {of} has "
                         f"{most / 2**30:,.0f} GiB of memory")  # fmt: skip


def check_model(
    build: Any,
    options: Mapping[str, Any],
    input_shape: Sequence[int],
    device: torch.device | None,
    copies: float,
) -> None:
    """Raise ValueError if ``copies`` copies of the weights do not fit ``device``, or one does not
    fit the CPU.

    Args:
        build: makes the model. It is called on the meta device, only if some size is at least
            ``LARGE``.
    """
    for key, number in _numbers(options):
        if key in REPEATED and number > MOST_LAYERS:
            raise ValueError(f"model_args.{key} is {number:,}; at most {MOST_LAYERS:,} are made")
    largest = max((number for _, number in _numbers(options)), default=0)
    if max(largest, math.prod(input_shape)) < LARGE:
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            count = sum(p.numel() for p in build().parameters())
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower() and "too large" not in str(error).lower():
            return  # it cannot be built on the meta device, so this check is skipped
        raise ValueError(
            f"model_args {dict(options)} ask for sizes that can't be: {error}"
        ) from None
    check_fits(4 * count, f"a model of {count:,} parameters")
    check_fits(int(4 * count * copies), f"training a model of {count:,} parameters", device)


def _numbers(options: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in a tree of options, with its name."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _numbers(value, name)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _numbers(value, "" if key in REPEATED else key)
    elif isinstance(options, int) and not isinstance(options, bool):
        yield key, options
