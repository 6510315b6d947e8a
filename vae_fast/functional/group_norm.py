"""GroupNorm, with SiLU in the same pass or without it."""

from __future__ import annotations

import torch

from vae_fast import reference
from vae_fast.backend import has_native, use_native
from vae_fast.functional.checks import check_floating

if has_native("cpu"):
    from vae_fast.ops import group_norm as _native


def group_norm_silu(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """silu(group_norm(x)) = v sigmoid(v), v = weight (x - mean) / sqrt(variance + eps) + bias.

    Mean and variance are those of a sample's group: ``C / num_groups`` channels at all positions
    (Wu & He 2018; Elfwing et al. 2018). Backward keeps only the input and the groups' statistics.

    Args:
        x: (N, C, ...), contiguous or channels-last; other layouts are copied.
        num_groups: divides C.
        weight, bias: (C,); None for 1 and 0. They are converted to x's dtype if needed. For x in
            half precision keep them in float32, in which the kernels compute.
        eps: added to the variance.

    Returns:
        (N, C, ...) in x's dtype, under autocast too, and in x's memory layout.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that don't fit.
    """
    return group_norm(x, num_groups, weight, bias, eps, silu=True)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    silu: bool = False,
) -> torch.Tensor:
    """``group_norm_silu``, or the same without SiLU: v in place of v sigmoid(v), on a GPU by torch."""
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be (N, C, ...), got shape {tuple(x.shape)}")
    channels = x.shape[1]
    if num_groups < 1 or channels < 1 or channels % num_groups:
        raise ValueError(
            f"x has {channels} channels and num_groups is {num_groups}: groups must divide channels"
        )
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        check_floating(name, t)
        if t.shape != (channels,):
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, and x has {channels} channels: {name} must be "
                f"({channels},)"
            )
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}: move them to one device")
    if use_native(x.device.type) and (silu or x.is_cpu):
        return _native.group_norm(x, num_groups, weight, bias, eps, silu)
    return reference.group_norm(x, num_groups, weight, bias, eps, silu)
