"""Matrix products by the faster of the CPU's two libraries.

torch sends float32 products on the CPU to MKL. oneDNN is faster on some processors (AMD's Zen 4 and
5) and slower on others (Zen 3). Large products therefore use the library that was faster in a
measurement, made once for each machine and torch and kept in a cache folder. A run records the
choice in its config, so that a resumed run computes the same products. A run's ``matmul`` and
``VAE_FAST_MATMUL=mkl|onednn`` override it; ``vae_fast.info()`` shows it. torch chooses for other
dtypes and devices.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vae_fast.backend import is_watched

LIBRARIES = ("mkl", "onednn")

# rows * in * out from which oneDNN saves more than its overhead of some 10 us.
LARGE = 1 << 23


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, after: str = "none") -> Tensor:
    """x weight^T + bias by oneDNN, then ``after``: "relu" or "none"."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")


def processor() -> str:
    """The processor's name, or ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_used: str | None = None  # set by use()


def use(library: str | None) -> None:
    """Send large float32 products to "mkl" or "onednn"; None restores the automatic choice.

    Raises:
        ValueError: there is no such library, or this torch is built without it.
    """
    global _used
    if library is not None:
        _check(library, "matmul")
    _used = library
    float32_library.cache_clear()


def resolve(wanted: str) -> str:
    """Use and return the library of a run's config; "auto" is the faster one."""
    use(None if wanted == "auto" else wanted)
    return float32_library()


def _check(library: str, name: str) -> None:
    if library not in LIBRARIES:
        raise ValueError(f"{name} must be {' or '.join(LIBRARIES)}, got {library!r}")
    if library == "onednn" and not has_onednn():
        raise ValueError(
            f"{name} is onednn, and torch {torch.__version__} is built without it: use mkl"
        )


def choice() -> tuple[str, str]:
    """The library for large float32 products on this CPU, "mkl" or "onednn", and the reason."""
    if _used is not None:
        return _used, "as the run says"
    if asked := os.environ.get("VAE_FAST_MATMUL"):
        _check(asked, "VAE_FAST_MATMUL")
        return asked, "as VAE_FAST_MATMUL says"
    if not has_onednn():
        return "mkl", "this torch is built without oneDNN"
    key = f"{processor() or platform.machine()}; torch {torch.__version__}"
    known = _cached()
    if known.get(key) not in LIBRARIES:
        known[key] = _faster()
        _cache(known)
    return known[key], "measured on this machine"


@functools.cache
def float32_library() -> str:
    """The library for large float32 products on this CPU: "mkl" or "onednn"."""
    return choice()[0]


def _faster() -> str:
    """The faster library for a layer of the tutorial's VAE; MKL unless oneDNN is 5% faster."""
    x, weight = torch.ones(128, 784), torch.ones(400, 784)
    calls: dict[str, Callable[[], object]] = {
        "mkl": lambda: torch.mm(x, weight.t()),
        "onednn": lambda: _onednn(x, weight, None),
    }
    times = dict.fromkeys(calls, float("inf"))
    with torch.inference_mode():
        for turn in range(43):  # alternating, and the best of each, against other load
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if turn > 2:
                    times[name] = min(times[name], time.perf_counter() - began)
    return "onednn" if times["onednn"] < 0.95 * times["mkl"] else "mkl"


def _cache_file() -> Path:
    """matmul.json in $VAE_FAST_CACHE, or in vae_fast in the user's cache folder."""
    folder = os.environ.get("VAE_FAST_CACHE")
    if not folder:
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vae_fast"))
    return Path(folder, "matmul.json")


def _cached() -> dict[str, str]:
    try:
        known = json.loads(_cache_file().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    return known if isinstance(known, dict) else {}


def _cache(known: dict[str, str]) -> None:
    """Write the cache file, if possible."""
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as beside:
            json.dump(known, beside, indent=1)
        os.replace(beside.name, file)
    except (OSError, RuntimeError):
        pass  # the next process measures again


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes x weight^T, which it can only return as a new tensor."""
    return (
        x.dtype == torch.float32
        and x.is_cpu
        and x.shape[0] * weight.numel() >= LARGE
        and float32_library() == "onednn"
        and not is_watched()  # counters of operations know only torch's own products
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x weight^T + bias, optionally with ReLU; x (N, in), weight (out, in)."""
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
    """out = grad^T x, the gradient of a linear layer's weight; returns out.

    If out has another dtype, the product is rounded to grad's dtype first. MKL is no slower than
    oneDNN for this product.
    """
    if out.dtype == grad.dtype:
        return torch.mm(grad.t(), x, out=out)
    return out.copy_(torch.mm(grad.t(), x))


def bias_grad(grad: Tensor, out: Tensor) -> Tensor:
    """out = the sum of grad's rows, the gradient of a linear layer's bias; returns out."""
    if out.dtype == grad.dtype:
        return torch.sum(grad, 0, out=out)
    return out.copy_(grad.sum(0))  # torch's sum into a wider dtype is slow


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
