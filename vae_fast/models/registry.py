"""Models by name: what ``vae-fast train --model NAME`` builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from vae_fast.import_paths import imported
from vae_fast.models.ae import AE
from vae_fast.models.builders.maps import latent_maps, quantized
from vae_fast.models.builders.structured import hierarchical, importance_weighted, recurrent
from vae_fast.models.builders.vectors import adversarial, conditional, gaussian, semi_supervised
from vae_fast.models.cvae import CVAE
from vae_fast.models.infovae import WAE, InfoVAE
from vae_fast.models.interface import Model
from vae_fast.models.tcvae import BetaTCVAE
from vae_fast.models.vae import BetaVAE

INTERFACE = ("encode", "decode", "loss", "reconstruct", "sample")

MODELS: dict[str, Callable[..., Any]] = {
    "ae": gaussian(AE, features_per_latent=1),
    "aae": adversarial,
    "vae": gaussian(BetaVAE),
    "beta-vae": gaussian(BetaVAE),
    "beta-tcvae": gaussian(BetaTCVAE),
    "infovae": gaussian(InfoVAE),
    "vamp-vae": gaussian(BetaVAE, default_prior="vamp"),
    "wae-mmd": gaussian(WAE, features_per_latent=1),
    "iwae": importance_weighted,
    "vrae": recurrent,
    "hvae": hierarchical,
    "autoencoder-kl": latent_maps,
    "vq-vae": quantized,
    "cvae": conditional(CVAE),
    "ssvae": semi_supervised,
}

# Default objectives of these models; a config overrides them.
OBJECTIVES: dict[str, dict[str, float]] = {
    "beta-vae": {"beta": 4.0},
    "beta-tcvae": {"beta": 6.0},
    "wae-mmd": {"beta": 10.0},
}


def build(name: str, input_shape: Sequence[int], **options: Any) -> Model:
    """Build a model for samples of shape ``input_shape``.

    Args:
        name: one of ``MODELS``, or the import path ``package.module:Class`` of your own subclass of
            nn.Module, which is called as ``Class(input_shape=..., **options)``.
        input_shape: the shape of one sample, such as (1, 28, 28).
        options: latent_dim=20, network="mlp" | "conv" | "resnet", network_options={...},
            likelihood="bernoulli" | ... (a name in ``likelihoods.LIKELIHOODS``) or an object,
            likelihood_options={...}, prior="standard" | "mixture" | "vamp", prior_options={...},
            and the model's own options.

    Raises:
        ValueError: an unknown name, or an import path that does not lead to a subclass of
            nn.Module. A path read from a file (``import_paths.FromFile``) must lead to torch,
            torchvision or vae_fast.
        TypeError: an option that the model lacks, or a class without the interface.
    """
    input_shape = tuple(input_shape)
    if not input_shape or any(side < 1 for side in input_shape):
        raise ValueError(f"input_shape must be positive sizes such as (1, 28, 28): {input_shape}")
    if ":" in name:
        model: Model = imported(name, "the model", nn.Module, "a subclass of nn.Module")(
            input_shape=input_shape, **options
        )
        missing = [method for method in INTERFACE if not callable(getattr(model, method, None))]
        if missing:
            raise TypeError(f"{name} has no {', '.join(missing)}: a model needs {INTERFACE}")
        return model
    if name not in MODELS:
        raise ValueError(
            f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}, "
            f"or an import path like package.module:Class"
        )
    made: Model = MODELS[name](input_shape, **options)
    return made
