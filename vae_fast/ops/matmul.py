"""Matrix products of the fused output layer, by the faster of the CPU's two libraries.

torch sends float32 products on the CPU to MKL, whose kernels for AMD processors can be half as
fast as oneDNN's. Which is faster is measured at first use, in some milliseconds, or set with
``VAE_FAST_MATMUL=mkl|onednn``; ``vae_fast.info()`` shows the choice. Other dtypes and devices go
where torch sends them.
"""

from __future__ import annotations

import functools
import os
import statistics
import time

import torch

Tensor = torch.Tensor
LIBRARIES = ("mkl", "onednn")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias through oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _median_seconds(call, repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@functools.cache
def float32_library() -> str:
    """The library for float32 products on this CPU: "mkl" or "onednn"."""
    chosen = os.environ.get("VAE_FAST_MATMUL")
    if chosen is not None and chosen not in LIBRARIES:
        raise ValueError(f"VAE_FAST_MATMUL must be {' or '.join(LIBRARIES)}, got {chosen!r}")
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return "mkl"
    if chosen is not None:
        return chosen
    x, weight = torch.ones(128, 400), torch.ones(784, 400)
    out = torch.empty(128, 784)
    mkl = _median_seconds(lambda: torch.mm(x, weight.t(), out=out))
    # A copy is part of oneDNN's price here: it has no way to write into a buffer of ours.
    onednn = _median_seconds(lambda: out.copy_(_onednn(x, weight, None)))
    return "onednn" if onednn < 0.9 * mkl else "mkl"


def _by_onednn(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and float32_library() == "onednn"


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """out = x weight^T + bias."""
    if _by_onednn(x):
        out.copy_(_onednn(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def product_into(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """out = grad weight."""
    if _by_onednn(grad):
        out.copy_(_onednn(grad, weight.t(), None))
    else:
        torch.mm(grad, weight, out=out)


def accumulate(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total += grad^T x, where total may be wider than grad and x.

    The transposed product is one that MKL does no slower than oneDNN.
    """
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), x)
    else:
        total += grad.t() @ x
