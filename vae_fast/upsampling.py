"""Nearest-neighbour upsampling by two and a 3x3 convolution, as one transposed convolution."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules


def spread(weight: Tensor) -> Tensor:
    """The kernel (I, O, 4, 4) of a transposed convolution with stride 2 and padding 1. It equals
    doubling every pixel, followed by a 3x3 convolution with ``weight`` (O, I, 3, 3).

    Two neighbouring taps see the same doubled pixel, so each of the four is a sum of at most two of
    the three, in both directions. 4/9 of the multiplications are left.
    """
    taps = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    taps = taps[:, :, 1:] + taps[:, :, :-1]
    taps = taps[..., 1:] + taps[..., :-1]
    return taps.transpose(0, 1)


def doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv``, a 3x3 convolution with padding 1, of x (N, I, H, W) with every pixel doubled:
    (N, O, 2 H, 2 W)."""
    return F.conv_transpose2d(x, spread(conv.weight), conv.bias, stride=2, padding=1)


def can_spread(conv: nn.Module) -> bool:
    """Whether ``conv`` is a convolution of our own that no tool has replaced, wrapped or hooked, with
    weights of at least 32 bits: sums of shorter ones would be rounded."""
    return is_unchanged(conv, nn.Conv2d) and cast(nn.Conv2d, conv).weight.dtype.itemsize >= 4


def is_unchanged(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether no tool has replaced, wrapped or hooked the module, or hooks all modules."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
             module._backward_pre_hooks, torch_modules._global_forward_hooks,
             torch_modules._global_forward_pre_hooks, torch_modules._global_backward_hooks,
             torch_modules._global_backward_pre_hooks)  # fmt: skip
    return type(module) is kind and "forward" not in vars(module) and not any(hooks)
