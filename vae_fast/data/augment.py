"""Augmentation by torchvision.transforms.v2: whole batches, on their device, named in a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vae_fast.import_paths import ImportPathError, check_entries, imported

V2 = "torchvision.transforms.v2"
Augment = Callable[[torch.Tensor], torch.Tensor]


def build_augment(entries: Sequence[Mapping[str, Any]]) -> Augment | None:
    """The transforms of a configuration, in order; None for an empty list.

    Args:
        entries: each {"name": ..., "args": {...}}; args is optional. A name is a class of
            torchvision.transforms.v2, or an import path, package.module:Class. Its instances map a
            batch (B, C, H, W) to a batch.

    Raises:
        ValueError, TypeError: an entry of another form, a name that does not exist, arguments that
            the class does not take.
        ModuleNotFoundError: torchvision is needed and not installed.
    """
    check_entries(entries)
    made = [_make(entry["name"], entry.get("args") or {}) for entry in entries]
    if not made:
        return None

    def augment(images: torch.Tensor) -> torch.Tensor:
        for transform in made:
            images = transform(images)
        return images

    return augment


def augmented(augment: Augment, images: torch.Tensor, seed: int) -> torch.Tensor:
    """The augmented batch. ``seed`` determines the draws; torch's generators are not changed.

    Raises:
        ValueError: the transforms changed the number or shape of the images, or their dtype to one
            that is not floating.
    """
    if images.dim() != 4:
        raise ValueError(
            f"augment takes images (C, H, W), and these samples are {tuple(images.shape[1:])}"
        )
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(images.device):
                torch.cuda.manual_seed(seed)
        made = augment(images)
    if not isinstance(made, torch.Tensor) or made.shape != images.shape:
        found = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise ValueError(
            f"augment makes {found} of a batch {tuple(images.shape)}, and the model takes what the "
            "data has: crop or resize to that size at the end"
        )
    if made.dtype != images.dtype and not made.is_floating_point():
        raise ValueError(
            f"augment makes {made.dtype} of {images.dtype}: only floats can replace it"
        )
    return made


def _make(name: str, args: Mapping[str, Any]) -> Augment:
    path = name if ":" in name else type(name)(f"{V2}:{name}")  # still one from a file, if it was
    try:
        kind = imported(path, "augment's", nn.Module, "a transform, a subclass of nn.Module")
    except ImportPathError as error:
        if error.package is None:
            raise
        raise _missing(name, error.package, "is not installed") from None
    except (ImportError, RuntimeError) as error:  # an unfit torchvision raises either
        raise _missing(name, path.split(".")[0], f"can't be imported ({error})") from None
    try:
        return kind(**args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {name} does not take {dict(args)}: {error}") from None


def _missing(name: str, package: str, why: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"augment's {name} needs {package}, which {why}: pip install {package}", name=package
    )
