"""Quantisers by name."""

from __future__ import annotations

from typing import Any

from vae_fast.functional.checks import check_count
from vae_fast.models.quantize.codebook import VQ
from vae_fast.models.quantize.common import Quantized, Quantizer, perplexity
from vae_fast.models.quantize.composed import Grouped, Residual
from vae_fast.models.quantize.scalar import FSQ, LFQ

QUANTIZERS = ("vq", "rvq", "fsq", "lfq")

__all__ = [
    "FSQ",
    "LFQ",
    "QUANTIZERS",
    "VQ",
    "Grouped",
    "Quantized",
    "Quantizer",
    "Residual",
    "make_quantizer",
    "perplexity",
]


def make_quantizer(name: str, dim: int, *, groups: int = 1, **options: Any) -> Quantizer:
    """A quantiser by name.

    Args:
        name: "vq", "fsq", "lfq", or "rvq": ``layers`` (4) codebooks, each for the residual of the
            previous ones.
        dim: the size of a vector.
        groups: parts of a vector, each with its own quantiser.
        options: the quantiser's options.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer must be one of {', '.join(QUANTIZERS)}, got {name!r}")
    check_count("groups", groups)
    if groups > 1:
        if dim % groups:
            raise ValueError(f"groups must divide the vectors' {dim} dimensions, got {groups}")
        return Grouped(make_quantizer(name, dim // groups, **options) for _ in range(groups))
    if name == "rvq":
        layers = options.pop("layers", 4)
        check_count("layers", layers)
        return Residual(VQ(dim, **options) for _ in range(layers))
    return {"vq": VQ, "fsq": FSQ, "lfq": LFQ}[name](dim, **options)
