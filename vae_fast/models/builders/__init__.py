"""Putting models together from options: networks by name, likelihoods, conditions.

Each builder here is what ``vae_fast.models.build`` calls as ``builder(input_shape, **options)``.
"""

from vae_fast.models.builders.maps import latent_maps, quantized
from vae_fast.models.builders.structured import hierarchical, importance_weighted, recurrent
from vae_fast.models.builders.vectors import adversarial, conditional, gaussian, semi_supervised

__all__ = [
    "adversarial",
    "conditional",
    "gaussian",
    "hierarchical",
    "importance_weighted",
    "latent_maps",
    "quantized",
    "recurrent",
    "semi_supervised",
]
