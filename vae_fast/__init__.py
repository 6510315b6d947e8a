"""vae_fast: fused kernels, drop-in modules and an engine for variational autoencoders."""

__version__ = "0.2.0.dev0"

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING


def _is_the_program() -> bool:
    """Whether this process is the command line: ``python -m vae_fast``, or the script vae-fast.

    While Python looks for the module that -m names, ``sys.argv[0]`` is "-m". Processes that a program
    starts have its ``sys.argv``, and an ``orig_argv`` of their own.
    """
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":
        return "vae_fast" in sys.orig_argv
    return name == "vae-fast" and name in map(os.path.basename, sys.orig_argv)


def _load() -> None:
    """Import torch and all public names, and register the ops."""
    public = import_module(f"{__name__}.public")
    globals().update({name: getattr(public, name) for name in public.__all__})


if TYPE_CHECKING or not _is_the_program():
    from vae_fast.public import *
    from vae_fast.public import __all__ as __all__
else:
    # The command line answers help and mistakes without torch, which takes seconds, and then calls
    # _load. OpenMP's threads, which torch's own ops use, spin for milliseconds when they have nothing
    # to do; on a busy machine they then keep the threads from running that they wait for.
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "5000"
