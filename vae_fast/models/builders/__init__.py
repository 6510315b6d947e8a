"""Builders of models from options. ``vae_fast.models.build`` calls them."""

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
