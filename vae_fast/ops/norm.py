"""The native Euclidean norm on the CPU, for the engine's buffer of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast.ops.fake import register_fake

euclidean_norm = torch.ops.vae_fast.euclidean_norm.default


@register_fake("euclidean_norm")
def _(x: Tensor) -> Any:
    return x.new_empty(())
