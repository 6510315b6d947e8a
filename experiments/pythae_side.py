"""The same networks trained by pythae (optional): its objective, its trainer, its epochs.

The networks are ours, with the initial weights of our run with the same seed. They are wrapped in
pythae's interface, with the sigmoid that its loss for binary data needs. So the trained weights are
in one of our models, and one evaluator serves both.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from experiments.training import quiet
from vae_fast import models
from vae_fast.data.arrays import ArrayData
from vae_fast.models import Bernoulli

INSTALL = "pip install pythae==0.1.2"


def absence() -> str | None:
    """The reason why pythae cannot be used, or None."""
    if importlib.util.find_spec("pythae") is None:
        return f"pythae is not installed ({INSTALL}): its rows are left out."
    try:
        import pythae.models
        import pythae.trainers  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it is old, and its imports may fail
        return f"pythae does not import ({type(error).__name__}: {error}): its rows are left out."
    return None


def train(config: dict[str, Any], data: ArrayData, seed: int) -> nn.Module:
    """The model of ``config`` ("vae" or "iwae", as for ``training.train``), trained by pythae.

    pythae's own loss ("bce", or for a Gaussian likelihood "mse") and trainer; Adam, batch size, learning rate and epochs as configured. The
    last model is used, as for ours.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    torch.manual_seed(seed)
    ours = models.build(config["model"], tuple(data.shape), **config["model_args"])
    common = {
        "input_dim": tuple(data.shape),
        "latent_dim": ours.latent_dim,
        "reconstruction_loss": "bce" if isinstance(ours.likelihood, Bernoulli) else "mse",
    }
    networks = dict(zip(("encoder", "decoder"), wrapped(ours), strict=True))
    if config["model"] == "iwae":
        samples = config["model_args"]["num_samples"]
        model = IWAE(IWAEConfig(**common, number_samples=samples), **networks)
    else:
        model = VAE(VAEConfig(**common), **networks)
    x = data.images.float() / (255.0 if data.images.dtype == torch.uint8 else 1.0)
    with tempfile.TemporaryDirectory(prefix="vae-fast-pythae-") as folder, quiet():
        logging.disable(logging.WARNING)
        trainer = BaseTrainer(
            model,
            BaseDataset(x, torch.zeros(len(x))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                num_epochs=config["epochs"],
                per_device_train_batch_size=config.get("batch_size", 128),
                learning_rate=config.get("lr", 1e-3),
                seed=seed,
                no_cuda=True,
            ),
        )
        # Its train() pickles the networks' classes, so only its steps are called.
        trainer.prepare_training()
        for epoch in range(1, config["epochs"] + 1):
            trainer.train_step(epoch)
        logging.disable(logging.NOTSET)
    return ours.eval()


def wrapped(ours: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Our encoder and decoder in pythae's interface: named outputs, and probabilities instead of
    logits."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    to_mean = ours.likelihood.mean

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = ours.latent_dim
            self.network = ours.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.network(x).chunk(2, dim=1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = ours.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=to_mean(self.network(z)))

    return Encoder(), Decoder()
