"""Posteriors by name, for ``posterior=NAME``."""

from __future__ import annotations

from typing import Any

from vae_fast.models.posteriors.ball import PoincareNormal
from vae_fast.models.posteriors.common import FlowPosterior, PosteriorPart
from vae_fast.models.posteriors.sphere import VonMisesFisher

POSTERIORS = ("gaussian", "planar", "radial", "iaf", "realnvp", "vmf", "poincare")


def make_posterior(name: str, latent_dim: int, **options: Any) -> PosteriorPart | None:
    """A posterior by name; None for "gaussian".

    Args:
        name: one of ``POSTERIORS``.
        options: for flows ``steps`` (4), ``hidden`` ((64, 64)) and ``context`` (0); for poincare
            ``curvature`` (1).
    """
    if name not in POSTERIORS:
        raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, got {name!r}")
    if name == "gaussian":
        if options:
            raise ValueError(f"the gaussian posterior has no options, got {sorted(options)}")
        return None
    if name == "vmf":
        return VonMisesFisher(latent_dim, **options)
    if name == "poincare":
        return PoincareNormal(latent_dim, **options)
    return FlowPosterior(latent_dim, name, **options)
