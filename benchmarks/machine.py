"""The context of a measurement: machine, versions, commit and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import vae_fast
from benchmarks.inputs import last_level_cache
from vae_fast.backend import library, native_reason

PACKAGES = ("torch", "numpy", "jax", "jaxlib", "pythae", "triton")
ROOT = Path(__file__).resolve().parent.parent


def need_kernels(device: torch.device) -> None:
    """Raise ValueError unless our results would come from our kernels.

    ``python -m benchmarks`` imports the vae_fast in the same clone, even if another is installed
    with kernels. An uncompiled clone would measure plain PyTorch under our name.
    """
    if vae_fast.get_backend() == "reference":
        raise ValueError(
            "the backend is 'reference', so plain PyTorch would be measured as ours: "
            "unset VAE_FAST_BACKEND"
        )
    package = Path(vae_fast.__file__).parent
    reason = native_reason(device.type)
    if reason is None:
        # An editable install lends its compiled library to any other clone that is imported.
        built = Path(library(device.type).__file__)
        if built.parent == package:
            return
        reason = f"the kernels that were loaded are another clone's, {built}"
    choice = "cuda" if device.type == "cuda" else "cpu"
    raise ValueError(
        f"the vae_fast that would be measured, in {package}, has no kernels for {device.type} of "
        f"its own: run `make build VAE_FAST_BUILD={choice}` or "
        f"`VAE_FAST_BUILD={choice} python setup.py build_ext --inplace` in {package.parent} "
        f"({reason})"
    )


def versions() -> dict[str, str | None]:
    """Versions of what takes part; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__
    found["vae_fast"] = vae_fast.__version__
    return found


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return name


def describe(device: torch.device) -> dict[str, object]:
    """The machine as the results name it."""
    facts: dict[str, object] = {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "torch cpu capability": torch.backends.cpu.get_cpu_capability(),
        "vae_fast cpu capability": vae_fast.info().get("cpu capability", "not built"),
        "last-level cache bytes": last_level_cache(device),
        "system": f"{platform.system()} {platform.machine()}",
    }
    try:
        facts["memory bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["load average at start"] = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError, ValueError):
        pass
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu memory bytes"] = properties.total_memory
        facts["cuda"] = torch.version.cuda
    return facts


def commit() -> str | None:
    """The commit measured, with + where tracked files differ from it; None outside a clone."""

    def said(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        mark = "+" if said("status", "--porcelain", "--untracked-files=no") else ""
        return said("rev-parse", "--short=12", "HEAD") + mark
    except (OSError, subprocess.CalledProcessError):
        return None


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
