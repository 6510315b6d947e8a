"""vae_fast: fused kernels, drop-in modules and an engine for variational autoencoders."""

__version__ = "0.2.0.dev0"

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING


def _is_the_program() -> bool:
    """Whether this process is the command line: ``python -m vae_fast``, or the script vae-fast.

    While Python searches the module of -m, ``sys.argv[0]`` is "-m". Child processes have the
    program's ``sys.argv``, and their own ``orig_argv``.
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
    # The command line answers help and usage errors without torch, whose import takes seconds, and
    # then calls _load. Idle OpenMP threads, which torch's ops use, spin for milliseconds; on a busy
    # machine they thus keep the threads that they wait for from running.
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "5000"
