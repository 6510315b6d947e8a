"""The engine: a Trainer, its configuration, and the folder it leaves behind.

Each name is imported when it is first used: the configuration alone needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_fast.train.callbacks import Callback
    from vae_fast.train.checkpoint import CheckpointError
    from vae_fast.train.config import (
        CheckpointConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from vae_fast.train.progress import Result
    from vae_fast.train.run_folder import RunFolder
    from vae_fast.train.standardize import fit_standardization
    from vae_fast.train.stop import Interrupted
    from vae_fast.train.trainer import Trainer, TrainingError

__all__ = [
    "Callback",
    "CheckpointConfig",
    "CheckpointError",
    "Interrupted",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Result",
    "RunFolder",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "fit_standardization",
]

_MODULES = {
    "Callback": "callbacks",
    "CheckpointConfig": "config",
    "CheckpointError": "checkpoint",
    "Interrupted": "stop",
    "ObjectiveConfig": "config",
    "OptimizerConfig": "config",
    "Result": "progress",
    "RunFolder": "run_folder",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "TrainingError": "trainer",
    "fit_standardization": "standardize",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return globals()[name]
