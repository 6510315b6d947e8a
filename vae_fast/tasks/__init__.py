"""Tasks for a trained VAE. ``vae_fast.tasks.pictures`` draws their results."""

from vae_fast.tasks.anomaly import anomaly_scores, anomaly_threshold
from vae_fast.tasks.classify import LinearProbe, linear_probe
from vae_fast.tasks.compress import Compressed, compress, decompress
from vae_fast.tasks.encode import encode
from vae_fast.tasks.generate import denoise, generate, reconstruct
from vae_fast.tasks.impute import Imputed, impute
from vae_fast.tasks.latent import (
    apply_attribute,
    attribute_vector,
    decode,
    interpolate,
    linear,
    spherical,
    traverse,
)
from vae_fast.tasks.restore import Restored, load_model
from vae_fast.tasks.samplers import SAMPLERS, fit_sampler
from vae_fast.tasks.statistics import LatentStatistics, statistics

__all__ = [
    "SAMPLERS",
    "Compressed",
    "Imputed",
    "LatentStatistics",
    "LinearProbe",
    "Restored",
    "anomaly_scores",
    "anomaly_threshold",
    "apply_attribute",
    "attribute_vector",
    "compress",
    "decode",
    "decompress",
    "denoise",
    "encode",
    "fit_sampler",
    "generate",
    "impute",
    "interpolate",
    "linear",
    "linear_probe",
    "load_model",
    "reconstruct",
    "spherical",
    "statistics",
    "traverse",
]
