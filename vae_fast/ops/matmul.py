"""Matrix products by the faster of the CPU's two libraries.

torch sends float32 products on the CPU to MKL, whose kernels for AMD processors reach less of the
machine than oneDNN's: half on Zen 5, 85% on Zen 4. So on AMD products of some size go to oneDNN;
``VAE_FAST_MATMUL=mkl|onednn`` says otherwise, and ``vae_fast.info()`` shows the choice. It is by
the processor's name and not by a stopwatch, so that a run and its repetition agree to the bit.
Other dtypes and devices go where torch sends them.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from vae_fast.backend import is_watched

Tensor = torch.Tensor
LIBRARIES = ("mkl", "onednn")

# rows * in * out from which oneDNN's preparations, some 10 us, are less than what it saves.
LARGE = 1 << 23


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, after: str = "none") -> Tensor:
    """x weight^T + bias through oneDNN, and ``after`` ("relu" or "none") of that."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")


@functools.cache
def processor() -> str:
    """The vendor of this machine's processor as it calls itself, or ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def float32_library() -> str:
    """The library for large float32 products on this CPU: "mkl" or "onednn"."""
    chosen = os.environ.get("VAE_FAST_MATMUL")
    if chosen is not None and chosen not in LIBRARIES:
        raise ValueError(f"VAE_FAST_MATMUL must be {' or '.join(LIBRARIES)}, got {chosen!r}")
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return "mkl"
    if chosen is not None:
        return chosen
    return "onednn" if processor() == "AuthenticAMD" else "mkl"


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x weight^T is oneDNN's, which makes a tensor of its own: it writes into no buffer."""
    return (
        x.dtype == torch.float32
        and x.is_cpu
        and x.shape[0] * weight.numel() >= LARGE
        and float32_library() == "onednn"
        and not is_watched()  # what counts operations knows torch's own products
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x weight^T + bias, or the rectified of that; x (N, in), weight (out, in)."""
    if by_onednn(x, weight):
        return _onednn(x, weight, bias, "relu" if relu else "none")
    out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    return out.relu_() if relu else out


def product(grad: Tensor, weight: Tensor) -> Tensor:
    """grad weight: the gradient of a linear layer's input; grad (N, out)."""
    if by_onednn(grad, weight):
        return _onednn(grad, weight.t(), None)
    return torch.mm(grad, weight)


def weight_grad(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """out = grad^T x: the gradient of a linear layer's weight, returned too.

    Where out's dtype is another, the product is rounded to grad's dtype first. This product is
    one that MKL does no slower than oneDNN.
    """
    if out.dtype == grad.dtype:
        return torch.mm(grad.t(), x, out=out)
    return out.copy_(torch.mm(grad.t(), x))


def bias_grad(grad: Tensor, out: Tensor) -> Tensor:
    """out = the sum of grad's rows: the gradient of a linear layer's bias, returned too."""
    if out.dtype == grad.dtype:
        return torch.sum(grad, 0, out=out)
    return out.copy_(grad.sum(0))  # torch's sum of a narrow dtype into a wide one is not fast


def product_into(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """out = grad weight."""
    if by_onednn(grad, weight):
        out.copy_(_onednn(grad, weight.t(), None))
    else:
        torch.mm(grad, weight, out=out)


def accumulate(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total += grad^T x, where total may be wider than grad and x."""
    if total.dtype == grad.dtype:
        torch.addmm(total, grad.t(), x, out=total)  # FlopCounterMode knows no addmm_
    else:
        total += grad.t() @ x
