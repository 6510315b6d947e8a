"""The Euclidean norm, natively, on the CPU: of the engine's one buffer of gradients."""

from __future__ import annotations

import torch

euclidean_norm = torch.ops.vae_fast.euclidean_norm.default


@torch.library.register_fake("vae_fast::euclidean_norm")
def _(x):
    return x.new_empty(())
