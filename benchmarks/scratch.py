"""Temporary folders."""

import atexit
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any


def scratch(owner: Any = None) -> Path:
    """A new folder, removed together with ``owner``, or at exit if there is no owner.

    A `tempfile.TemporaryDirectory` would warn if it is not closed, whenever it is collected.
    """
    folder = tempfile.mkdtemp(prefix="vae-fast-benchmark-")
    if owner is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
