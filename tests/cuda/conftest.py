"""Tests that need a CUDA GPU. (tests/ops run on every device that there is, too.)

The tests are marked ``cuda`` and skipped, with the reason, where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vae_fast
from vae_fast.backend import native_reason


@pytest.fixture(autouse=True)
def gpu() -> Iterator[torch.device]:
    """The current GPU, with the native backend set."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if reason := native_reason("cuda"):
        pytest.skip(reason)
    with vae_fast.set_backend("native"):
        yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()
