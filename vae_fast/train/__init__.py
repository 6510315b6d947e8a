"""The engine: a Trainer, its configuration, and the folder it leaves behind."""

from vae_fast.train.checkpoint import CheckpointError
from vae_fast.train.config import CheckpointConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_fast.train.reached import Result
from vae_fast.train.run_folder import RunFolder
from vae_fast.train.stop import Interrupted
from vae_fast.train.trainer import Trainer, TrainingError

__all__ = [
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
]
