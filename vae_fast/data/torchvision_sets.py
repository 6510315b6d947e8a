"""Named data sets from torchvision, which only this module imports, when needed.

torchvision stores CIFAR-10 as pickles. It compares their MD5 with its own list before reading them.
These are the only pickles that one of our names can lead to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_fast.data.catalog import Entry


class TorchvisionUnavailable(Exception):
    """Why torchvision could not give the data, in one line."""


def read_torchvision(entry: Entry, *, train: bool, root: Path, download: bool) -> tuple[Any, Any]:
    """The official training or test set: images (N, H, W) or (N, C, H, W) uint8, labels (N,).

    Raises:
        TorchvisionUnavailable: torchvision is missing or broken, or has no such data in root and could not, or was
            not asked to, download it.
    """
    datasets = import_datasets()
    part: dict[str, Any] = {"train": train}
    if entry.torchvision == "SVHN":
        part = {"split": "train" if train else "test"}
    try:
        found = getattr(datasets, entry.torchvision)(str(root), download=download, **part)
    except Exception as error:  # network, archive and file system can all fail in this call
        where = f"torchvision's {entry.torchvision} in {root}"
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            raise TorchvisionUnavailable(
                f"{where}: it needs {package} too: pip install {package}"
            ) from error
        if download:
            # The later lines say which address failed, and how.
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise TorchvisionUnavailable(f"{where}: the download failed: {reason}") from error
        raise TorchvisionUnavailable(f"{where}: {first_line(error)}") from error
    images = found.data
    labels = found.labels if hasattr(found, "labels") else found.targets
    if entry.torchvision == "CIFAR10":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images, np.asarray(labels)


def import_datasets() -> Any:
    """torchvision.datasets, or TorchvisionUnavailable with one sentence on why not."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise TorchvisionUnavailable(
                f"torchvision does not import: {first_line(error)}"
            ) from error
        raise TorchvisionUnavailable(
            'torchvision is not installed: pip install "vae_fast[data]"'
        ) from error
    except Exception as error:  # a torchvision for another torch fails in many ways
        raise TorchvisionUnavailable(
            f"torchvision is installed and does not import beside torch {torch.__version__} "
            f"({first_line(error)}): install the torchvision that was made for this torch"
        ) from error
    return datasets


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
