"""The tutorial's VAE in pythae, where that is installed: an epoch of its own trainer."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType

from torch import Tensor

from benchmarks.case import Absence
from benchmarks.scratch import scratch


def contender(
    tutorial: ModuleType, images: Tensor, batch: int
) -> Callable[[None], float] | Absence:
    """A function that trains for one epoch and returns its mean loss in nats per sample.

    ``tutorial`` has the Encoder and Decoder to train.
    """
    if importlib.util.find_spec("pythae") is None:
        return Absence("pythae", "pythae is not installed: pip install pythae==0.1.2")
    try:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except Exception as error:  # noqa: BLE001 - it is old, and its imports may fail
        return Absence("pythae", f"pythae does not import: {type(error).__name__}: {error}")
    import torch

    # The tutorial's networks in pythae's interface: its own defaults are larger.
    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = 20
            self.network = tutorial.Encoder(784, 400, 20)

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.network(x.flatten(1))
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = tutorial.Decoder(20, 400, 784)

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z).reshape(-1, 1, 28, 28))

    logging.getLogger("pythae").setLevel(logging.ERROR)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    pixels = images.reshape(-1, 1, 28, 28)
    dataset = BaseDataset(pixels, torch.zeros(len(pixels)))
    trainer = BaseTrainer(
        model,
        dataset,
        training_config=BaseTrainerConfig(
            output_dir=str(scratch(model)),
            num_epochs=1,
            per_device_train_batch_size=batch,
            learning_rate=1e-3,
        ),
    )
    trainer.prepare_training()

    def run(_: None) -> float:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its bars
            return float(trainer.train_step(epoch=1))

    return run
