"""VAE families. Every model has encode, decode, loss, reconstruct and sample, and takes its
networks and its likelihood as arguments.
"""

from typing import Any

from vae_fast.models import vae as _vae
from vae_fast.models.aae import AAE
from vae_fast.models.ae import AE
from vae_fast.models.autoencoder_kl import AutoencoderKL
from vae_fast.models.base import LatentModel
from vae_fast.models.cvae import CVAE, ConditionalIWAE
from vae_fast.models.gaussian import Posterior
from vae_fast.models.hvae import HVAE
from vae_fast.models.infovae import WAE, InfoVAE
from vae_fast.models.iwae import IWAE, ImportanceWeighted
from vae_fast.models.likelihoods import Bernoulli, Categorical, Gaussian, Laplace, Likelihood
from vae_fast.models.priors import MixturePrior, VampPrior
from vae_fast.models.quantize import QUANTIZERS, make_quantizer
from vae_fast.models.registry import MODELS, OBJECTIVES, build
from vae_fast.models.ssvae import SSVAE
from vae_fast.models.tcvae import BetaTCVAE
from vae_fast.models.vae import BetaVAE
from vae_fast.models.vqvae import VQVAE
from vae_fast.models.vrae import VRAE

__all__ = [
    "AAE",
    "AE",
    "CVAE",
    "HVAE",
    "IWAE",
    "MODELS",
    "OBJECTIVES",
    "QUANTIZERS",
    "SSVAE",
    "VQVAE",
    "VRAE",
    "WAE",
    "AutoencoderKL",
    "Bernoulli",
    "BetaTCVAE",
    "BetaVAE",
    "Categorical",
    "ConditionalIWAE",
    "Gaussian",
    "ImportanceWeighted",
    "InfoVAE",
    "Laplace",
    "LatentModel",
    "Likelihood",
    "MixturePrior",
    "Posterior",
    "VampPrior",
    "build",
    "make_quantizer",
]


def __getattr__(name: str) -> Any:
    if name == "VAE":  # the name until version 0.2
        return _vae.VAE
    if name == "load_stable_diffusion":  # so until version 0.2
        # An AttributeError's words would be lost in `from vae_fast.models import ...`.
        raise ImportError("load_stable_diffusion is in vae_fast.hub now")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
