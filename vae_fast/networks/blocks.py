"""The blocks of large convolutional VAEs: residual, attention, downsampling and upsampling blocks.

Maps are (N, C, H, W), in the memory layout of their input. Parameters stay contiguous: FSDP2
requires it, and an optimizer state loaded from a checkpoint has the parameters' layout.

Activation checkpointing (``set_checkpointing``) recomputes activations in backward, at one of two
levels:

    "blocks"   a block keeps only its input (Chen et al. 2016);
    "norms"    backward recomputes each convolution's norm and activation, but no convolution:
               torch stops at the last tensor that backward needs, a convolution's input.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vae_fast.backend import Backend, get_backend, is_transforming, set_backend
from vae_fast.functional.group_norm import group_norm
from vae_fast.networks.scripting import NotScriptable
from vae_fast.nn import GroupNormSiLU
from vae_fast.upsampling import can_spread, doubled

CHECKPOINTING = ("none", "norms", "blocks")


class Recomputable(NotScriptable, nn.Module):
    """A module whose ``compute(h)`` can run again in backward, instead of keeping activations."""

    level = "blocks"
    recompute = False
    is_random = False  # whether there is dropout, whose draws must repeat

    def compute(self, h: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement compute(h)")

    def forward(self, h: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled() and not _keeps_all():
            random = self.is_random and self.training
            again: dict[str, Any] = (
                {} if torch.compiler.is_compiling() else {"context_fn": _same_backend_again}
            )
            return checkpoint(
                self.compute, h, use_reentrant=False, preserve_rng_state=random, **again
            )
        return self.compute(h)


def _same_backend_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts for forward and its repetition, which must save the same tensors."""
    return nullcontext(), _BackendContext(get_backend())


class _BackendContext(AbstractContextManager[Any]):
    """Sets a backend. It can be entered repeatedly: a retained graph is recomputed each time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.entered: list[Any] = []

    def __enter__(self) -> None:
        self.entered.append(set_backend(self.backend))

    def __exit__(self, *error: object) -> None:
        self.entered.pop().__exit__(*error)


def _keeps_all() -> bool:
    """torch.func cannot differentiate a checkpoint, and torch.export cannot export one."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return is_transforming()


def set_checkpointing(network: nn.Module, level: str) -> None:
    """Set the checkpointing level of the blocks in ``network``: "none", "norms" or "blocks"."""
    if level not in CHECKPOINTING:
        raise ValueError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got {level!r}")
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.recompute = module.level == level


def group_norm_of(channels: int, groups: int, kind: type = nn.GroupNorm) -> nn.GroupNorm:
    if groups < 1 or channels % groups:
        raise ValueError(
            f"GroupNorm needs channels that its groups divide: a level has {channels} channels, "
            f"and groups is {groups}"
        )
    return kind(groups, channels, eps=1e-6)


def normalize(h: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of h (N, C, H, W), in h's dtype, under autocast too, and in h's layout."""
    return group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)


class NormConv(Recomputable):
    """GroupNorm, SiLU, dropout, 3x3 convolution."""

    level = "norms"

    def __init__(self, n_in: int, n_out: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = group_norm_of(n_in, groups, GroupNormSiLU)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.is_random = dropout > 0

    def compute(self, h: Tensor) -> Tensor:
        return self.conv(self.dropout(self.norm(h)))


class Residual(Recomputable):
    """h + f(h), where f is norm, SiLU and convolution, twice. If n_in and n_out differ, a 1x1
    convolution maps h to n_out channels."""

    def __init__(self, n_in: int, n_out: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = NormConv(n_in, n_out, groups)
        self.second = NormConv(n_out, n_out, groups, dropout)
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.is_random = dropout > 0
        nn.init.zeros_(self.second.conv.weight)  # f starts at 0, so deep networks train
        nn.init.zeros_(self.second.conv.get_parameter("bias"))

    def compute(self, h: Tensor) -> Tensor:
        return self.skip(h) + self.second(self.first(h))


PLAIN_PLACES = 256  # positions up to which plain products are faster on a CPU


class SelfAttention(Recomputable):
    """h plus attention over all positions: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017).

    Args:
        head_channels: channels per head; a level with no more channels has one head.
    """

    def __init__(self, channels: int, groups: int, head_channels: int = 64) -> None:
        super().__init__()
        if head_channels < 1 or channels % min(channels, head_channels):
            raise ValueError(
                f"attention's heads must divide a level's channels: it has {channels}, and "
                f"head_channels is {head_channels}"
            )
        self.heads = channels // min(channels, head_channels)
        self.norm = group_norm_of(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def compute(self, h: Tensor) -> Tensor:
        tokens = normalize(h, self.norm).flatten(2).transpose(1, 2)  # no copy if channels-last
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = attention(q, k, v).transpose(1, 2).flatten(2)
        added = self.out(gathered).transpose(1, 2).unflatten(2, h.shape[2:])
        return h + added


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k and v of shape (..., positions, d).

    On a CPU torch's fused attention is slower for short sequences: for a 7 x 7 map, forward and
    backward take twice as long as plain products in float32, and nine times as long in bfloat16.
    """
    if q.device.type != "cpu" or k.shape[-2] > PLAIN_PLACES:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1) @ v


class Downsample(nn.Conv2d):
    """A 3x3 convolution of stride 2: half the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(Recomputable):
    """Nearest-neighbour upsampling, then a 3x3 convolution: twice the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def compute(self, h: Tensor) -> Tensor:
        # On a CPU one transposed convolution takes half to three quarters of the time. On a GPU
        # nothing was measured.
        if h.is_cpu and can_spread(self.conv):
            return doubled(h, self.conv)
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
