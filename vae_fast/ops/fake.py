"""Fake kernels: shapes and dtypes for torch.compile.

A call that mixes meta and real tensors reaches the fake kernel, which would return uninitialised
memory. Therefore fake kernels check that all tensors are on one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def register_fake(name: str, fake: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """``torch.library.register_fake`` for ``vae_fast::name``, with a check for a single device."""
    if fake is None:
        return functools.partial(register_fake, name)

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        devices = {t.device for t in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        if len(devices) > 1:
            raise RuntimeError(
                f"vae_fast: {name} got tensors on {', '.join(sorted(map(str, devices)))}: move them "
                "to one device"
            )
        return fake(*args, **kwargs)

    torch.library.register_fake(f"vae_fast::{name}", checked)
    return fake
