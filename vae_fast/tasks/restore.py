"""A trained model from the folder of its run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from vae_fast.import_paths import Trust
from vae_fast.models.interface import Model
from vae_fast.train import checkpoint
from vae_fast.train.config import TrainConfig, resolve_device
from vae_fast.train.run_folder import RunFolder
from vae_fast.train.setup import build_model


class Restored(NamedTuple):
    """A model in evaluation mode, its training configuration, and the step of its checkpoint."""

    model: Model
    config: TrainConfig
    step: int


def load_model(
    run: str | Path,
    which: str | int = "best",
    device: str | torch.device = "auto",
    *,
    trust: Trust = False,
) -> Restored:
    """Load a model from a run folder. No code of the folder is run.

    Args:
        run: the folder that ``vae-fast train`` made.
        which: "best" (lowest validation loss), "last", or the step of a checkpoint.
        device: the model's device.
        trust: which classes config.yaml may name; their code is run. False: those of torch,
            torchvision and vae_fast. True: any. A collection of import paths: those as well.

    Raises:
        ValueError: the folder is no run, or the checkpoint is missing, damaged or of another model.
    """
    folder = RunFolder(run)
    config = folder.config(trust)
    saved = checkpoint.load(_find(folder.checkpoints, which))
    model = build_model(config, saved.state["input_shape"])
    # If the run kept a moving average, it was validated with that.
    weights = saved.weights | saved.state["step"].get("average", {})
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {saved.path} don't fit the model of {run}/config.yaml: "
            + " ".join(str(error).split())
        ) from None
    model.to(resolve_device(str(device))).eval()
    return Restored(model, config, saved.state["reached"]["step"])


def best_or_last(run: str | Path) -> str:
    """ "best", or "last" with a warning if the run has no best checkpoint yet."""
    folder = RunFolder(run).checkpoints
    if checkpoint.pointed_folder(folder, "best") or not checkpoint.pointed_folder(folder, "last"):
        return "best"
    warnings.warn(f"{run} has no best checkpoint: the last is used", stacklevel=3)
    return "last"


def _find(checkpoints: Path, which: str | int) -> Path:
    name = str(which)
    if name in ("best", "last"):
        path = checkpoint.pointed_folder(checkpoints, name)
    else:
        is_step = name.isascii() and name.isdecimal()
        path = checkpoints / (f"{int(name):08d}" if is_step else name)
    if path is not None and path.is_dir():
        return path
    found = [name for name in ("best", "last") if checkpoint.pointed_folder(checkpoints, name)]
    found += [p.name for p in checkpoint.step_folders(checkpoints)]
    raise ValueError(
        f"{checkpoints} has no checkpoint {name!r}: it has {', '.join(found) or 'none yet'}"
    )
