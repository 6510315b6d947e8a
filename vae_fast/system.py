"""What this installation is: versions, compiled libraries, threads and devices."""

from __future__ import annotations

import os
import platform
import sys

import torch

from vae_fast import __version__
from vae_fast.backend import get_backend, has_native, library, native_reason, node
from vae_fast.ops.matmul import choice


def info() -> dict[str, object]:
    """Versions, capability and why a backend is missing, for ``vae-fast info`` and bug reports."""
    facts: dict[str, object] = {
        "vae_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backend": get_backend(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
    if has_native("cpu"):
        native = library("cpu")
        facts["native cpu"] = "yes"
        facts["cpu capability"] = native.cpu_capability()
        facts["cpu capabilities"] = ", ".join(native.cpu_capabilities())
        facts["usable processors"] = native.usable_cpus()
        facts["float32 products"] = "{}, {}".format(*choice())
        facts["steps on the CPU"] = (
            "native for MLPs, recorded for other models of our own classes, else eager; a run says which"
        )
        facts["OpenMP's spin"] = os.environ.get("GOMP_SPINCOUNT", "its own default")
        facts["autograd nodes"] = (
            "in C++"
            if node is not None
            else "in Python: those in C++ are not built, or for another torch"
        )
        facts.update({f"built with {k}": v for k, v in native.build_info().items()})
    else:
        facts["native cpu"] = f"no: {native_reason('cpu')}"
    if has_native("cuda"):
        facts["native cuda"] = "yes"
        facts.update({f"cuda {k}": v for k, v in library("cuda").build_info().items()})
    else:
        facts["native cuda"] = f"no: {native_reason('cuda')}"
    if torch.cuda.is_available():
        facts["gpus"] = ", ".join(
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        )
    else:
        facts["gpus"] = "none"
    return facts
