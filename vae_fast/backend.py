"""The choice between the native kernels and plain PyTorch.

The native libraries are loaded once, at import, if they are there; an import never builds them.
``auto`` uses each for its device, and otherwise falls back to ``vae_fast.reference`` with one warning.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext
from typing_extensions import Self

Backend = Literal["auto", "native", "reference"]
BACKENDS = get_args(Backend)
MINIMUM_TORCH = (2, 11)

_PACKAGE = Path(__file__).parent
_choice: Backend = "auto"
_libraries: dict[str, Any] = {}  # device type -> extension module
_reasons: dict[str, str] = {}  # device type -> why there is no library for it
_warned: set[str] = set()


def _why_missing(name: str, error: ImportError) -> str:
    """One sentence that says why an extension did not import."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = sorted(p.name for p in _PACKAGE.glob(f"{name}.*") if p.suffix in {".so", ".pyd"})
    if not built:
        return (
            f"vae_fast.{name} is not built; reinstall with a C++ compiler"
            + (" and the CUDA toolkit" if name == "_C_cuda" else "")
            + " on PATH (VAE_FAST_BUILD="
            + ("cuda" if name == "_C_cuda" else "cpu")
            + " makes the build say what it lacks)"
        )
    if f"{name}{suffix}" not in built:
        return (
            f"vae_fast.{name} was built for another Python ({built[0]}), and this is Python "
            f"{platform.python_version()} ({suffix}): reinstall vae_fast with this Python"
        )
    version = torch.__version__
    if tuple(int(p) for p in version.split(".")[:2]) < MINIMUM_TORCH:
        return (
            f"vae_fast.{name} was built for torch {'.'.join(map(str, MINIMUM_TORCH))} or newer, "
            f"and this is torch {version}: upgrade torch"
        )
    return f"vae_fast.{name} does not load under torch {version}: {error}"


def _load(name: str, device: str) -> None:
    try:
        _libraries[device] = importlib.import_module(f"vae_fast.{name}")
    except ImportError as error:
        _reasons[device] = _why_missing(name, error)


def _set_aside_if_stale() -> None:
    """Do not use a library built from other sources: it could fail, or compute wrong results."""
    from vae_fast.built import why_stale

    lacks = why_stale(_libraries["cpu"])
    if lacks is not None:
        file = Path(_libraries.pop("cpu").__file__).name
        _reasons["cpu"] = (
            f"vae_fast._C ({file}) was compiled from other sources than the Python files beside it, "
            f"in {_PACKAGE}: it has {lacks}; rebuild it: {_rebuild()}"
        )


def _rebuild() -> str:
    """The command that rebuilds this package's library."""
    if (_PACKAGE.parent / "setup.py").is_file():
        return f"cd {_PACKAGE.parent} && VAE_FAST_BUILD=auto python setup.py build_ext --inplace"
    return "pip install --force-reinstall --no-deps vae_fast"


def _load_node() -> Any:
    """The autograd nodes in C++, if they were built with this very version of torch.

    Without them Python does the same, which costs some microseconds per call.
    """
    if "cpu" not in _libraries or _libraries["cpu"].build_info()["torch"] != torch.__version__:
        return None
    from vae_fast.built import NODE_INTERFACE

    try:
        found = importlib.import_module("vae_fast._C_autograd")
    except ImportError:
        return None
    is_ours = (found.torch, found.interface) == (torch.__version__, NODE_INTERFACE)
    return found if is_ours else None


def _load_libraries() -> None:
    _load("_C", "cpu")
    if "cpu" in _libraries:
        _set_aside_if_stale()
    if "cpu" in _libraries:
        _libraries["cpu"].cpu_capability()  # raises if VAE_FAST_CPU_CAPABILITY names no level
    if torch.version.cuda is None:
        _reasons["cuda"] = f"this torch ({torch.__version__}) is built without CUDA"
    elif "cpu" not in _libraries:
        _reasons["cuda"] = "the CPU library, which defines the ops, is missing: " + _reasons["cpu"]
    else:
        # _C defines the ops' schemas, so it comes first. If _C_cuda fails, the CPU's ops stay.
        _load("_C_cuda", "cuda")


class set_backend:
    """Choose the backend: from now on, or for a ``with`` block.

    ``"auto"`` uses native kernels if they are built, and otherwise falls back with one warning;
    ``"native"`` raises if there are none, with the reason; ``"reference"`` is plain PyTorch. The
    environment variable ``VAE_FAST_BACKEND`` sets the choice at import.

    >>> vae_fast.set_backend("reference")
    >>> with vae_fast.set_backend("native"):
    ...     ...
    """

    def __init__(self, name: Backend) -> None:
        global _choice
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
        self._previous = _choice
        _choice = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        global _choice
        _choice = self._previous


def get_backend() -> Backend:
    """The backend last chosen: ``"auto"``, ``"native"`` or ``"reference"``."""
    return _choice


def is_transforming() -> bool:
    """Whether a function transform (``torch.func``) or a forward-mode derivative is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a function mode or a dispatch mode is active, such as one that counts operations.

    Code that replaces torch's modules by other ops then calls the modules instead. Two modes do not
    count: the engine's recorder, which records the kernels, and modes that set new tensors' device.
    """
    functions, dispatches = (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    )
    if functions + dispatches == 0:
        return False
    modes = [torch._C._get_function_stack_at(i) for i in range(functions)]
    modes += [torch._C._get_dispatch_stack_at(i) for i in range(dispatches)]
    return not all(isinstance(m, DeviceContext) or hasattr(m, "records_kernels") for m in modes)


def _is_transforming_in_a_trace() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# torch.compiler.assume_constant_result sets this: Dynamo calls the function while tracing and puts
# its result into the graph. The decorator itself would import Dynamo, which takes seconds.
_is_transforming_in_a_trace.__dict__["_dynamo_marked_constant"] = True


def _exports_onnx() -> bool:
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


_exports_onnx.__dict__["_dynamo_marked_constant"] = (
    True  # Dynamo would assume that torch's function returns False
)


def _refuse_onnx() -> None:
    """Raise within ``torch.onnx.export``, before torch reports an unknown op."""
    if _exports_onnx():
        raise RuntimeError(
            "ONNX has no operators for vae_fast's native kernels: export within "
            "vae_fast.set_backend('reference'), which is plain PyTorch"
        )


def use_native(device_type: str) -> bool:
    """Whether ops on this device type run natively; raises if they must but cannot.

    Function transforms and forward-mode derivatives run in plain PyTorch, which has rules for all
    its ops.
    """
    if _choice == "reference":
        return False
    if torch.compiler.is_compiling():
        _refuse_onnx()
        if _is_transforming_in_a_trace():
            return False
    elif is_transforming():
        return False
    elif torch._C._get_tracing_state() is not None:
        _refuse_onnx()
    if device_type in _libraries:
        return True
    reason = _reasons.get(device_type, f"there is no kernel for device type {device_type!r}")
    if _choice == "native":
        raise RuntimeError(f"backend 'native' was asked for, and {reason}")
    if device_type not in _warned and not torch.compiler.is_compiling():
        _warned.add(device_type)
        warnings.warn(
            f"vae_fast runs in plain PyTorch on {device_type}: {reason}. "
            "vae_fast.set_backend('reference') silences this.",
            RuntimeWarning,
            stacklevel=3,
        )
    return False


def has_native(device_type: str) -> bool:
    """Whether there is a library for ``device_type``, independent of the chosen backend."""
    return device_type in _libraries


def takes_small_calls() -> bool:
    """Whether the usual calls may go to the nodes in C++, which leave all others alone."""
    return node is not None and _choice != "reference"


def native_reason(device_type: str) -> str | None:
    """Why there is no native library for ``device_type``; None if there is one."""
    if device_type in _libraries:
        return None
    return _reasons.get(device_type, f"there is no kernel for device type {device_type!r}")


def library(device_type: str = "cpu") -> Any:
    """The extension module that serves ``device_type``, or RuntimeError with the reason."""
    if device_type not in _libraries:
        raise RuntimeError(native_reason(device_type))
    return _libraries[device_type]


def empty_cache() -> None:
    """Return the memory that is kept for large CPU outputs (at most 1 GiB) to the system.

    The kernels reuse the memory of freed large outputs, which avoids the page faults of new memory.
    For the GPU see ``torch.cuda.empty_cache``.
    """
    if "cpu" in _libraries:
        _libraries["cpu"].release_kept()


_load_libraries()
node = _load_node()
try:
    set_backend(cast(Backend, os.environ.get("VAE_FAST_BACKEND") or "auto"))  # which checks it
except ValueError as error:
    raise ValueError(f"environment variable VAE_FAST_BACKEND: {error}") from None
