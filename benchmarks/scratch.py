"""Temporary folders."""

import atexit
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any


def scratch(owner: Any = None) -> Path:
    """A new folder, removed together with ``owner``, or at exit where there is none.

    Not a `tempfile.TemporaryDirectory`: that warns when nobody closes it, at whatever moment the
    collector finds it.
    """
    folder = tempfile.mkdtemp(prefix="vae-fast-benchmark-")
    if owner is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
