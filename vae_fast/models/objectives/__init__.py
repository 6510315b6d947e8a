"""Objectives by name: losses that ``objective=NAME`` puts in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vae_fast.models.objectives.common import Objective
from vae_fast.models.objectives.disentangle import DIP, Factor
from vae_fast.models.objectives.elbo import MSSSIM, Capacity
from vae_fast.models.objectives.hamiltonian import Hamiltonian
from vae_fast.models.objectives.importance import CIWAE, MIWAE, PIWAE
from vae_fast.models.objectives.latent_diffusion import LatentDiffusion
from vae_fast.models.objectives.regularized import RAE
from vae_fast.models.objectives.riemannian import Riemannian
from vae_fast.models.objectives.vae_gan import VAEGAN

_MAKERS: dict[str, Callable[..., Objective]] = {
    "capacity": Capacity,
    "factor": Factor,
    "dip-i": partial(DIP, kind=1),
    "dip-ii": partial(DIP, kind=2),
    "ms-ssim": MSSSIM,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "hamiltonian": Hamiltonian,
    "riemannian": Riemannian,
    "vae-gan": VAEGAN,
    "latent-diffusion": LatentDiffusion,
    "rae-l2": partial(RAE, penalty="l2"),
    "rae-gp": partial(RAE, penalty="gp"),
}
OBJECTIVE_NAMES = ("elbo", *_MAKERS)


def make_objective(
    name: str, latent_dim: int, input_shape: Sequence[int], **options: Any
) -> Objective | None:
    """An objective by name, one of ``OBJECTIVE_NAMES``, with its options, for models with this
    latent_dim and samples of ``input_shape``; None for "elbo", the model's own loss."""
    if name not in OBJECTIVE_NAMES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVE_NAMES)}, got {name!r}")
    if name == "elbo":
        if options:
            raise ValueError(f"the elbo has no options, got {sorted(options)}")
        return None
    if name in ("factor", "hamiltonian", "riemannian"):
        options["latent_dim"] = latent_dim
    if name in ("latent-diffusion", "riemannian", "vae-gan"):
        options["input_shape"] = input_shape
    return _MAKERS[name](**options)
