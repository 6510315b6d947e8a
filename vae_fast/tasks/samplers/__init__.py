"""Samplers: distributions of z, fitted after training, that replace the prior."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from vae_fast.models.batched import evaluating, in_batches
from vae_fast.models.interface import HasCodes, Model, is_probabilistic, part_of
from vae_fast.models.networks import device_and_dtype
from vae_fast.tasks.samplers.learned import CodeSampler, FlowSampler, SecondStage
from vae_fast.tasks.samplers.mixture import GaussianMixture

SAMPLERS = ("prior", "normal", "gmm", "flow", "second-stage", "pixelcnn")


class Sampler(Protocol):
    """Draws (n, latent_dim) of z; ``CodeSampler``, codes (n, *places, C)."""

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """n draws; a temperature below 1 makes them more typical and less varied."""


class Normal:
    """N(0, temperature^2), for any prior of the model."""

    def __init__(self, dim: int, like: Tensor) -> None:
        self.dim, self.like = dim, like

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        return temperature * self.like.new_empty(n, self.dim).normal_()


def fit_sampler(
    name: str,
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    seed: int | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Sampler | None:
    """A sampler fitted to the codes of x, on the model's device; None for "prior", the model's
    prior.

    Args:
        name: "normal"; "gmm", a mixture of Gaussians (``components``=10); "flow" (``kind``: maf, iaf,
            realnvp; ``steps``=2000); "second-stage", another VAE (``steps``=3000); "pixelcnn", over a
            vq-vae's codes (``steps``=2000, ``channels``=64, ``layers``=6).
        x: (N, *input_shape), training data. y: the conditions of a conditional model.
        seed: the seed of posterior draws and training; the same seed gives the same fit.

    Raises:
        ValueError: the name is unknown, or the sampler does not fit the model's codes.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if name == "prior":
        return None
    has_codes = isinstance(model, HasCodes)
    if has_codes != (name == "pixelcnn"):
        kind = "the numbers of" if name == "pixelcnn" else "continuous"
        raise ValueError(
            f"the sampler {name} is for {kind} codes, and {type(model).__name__} "
            + ("has numbers: use pixelcnn or prior" if has_codes else "is no vq-vae")
        )
    device, dtype = device_and_dtype(model)
    if name == "normal":
        return Normal(model.latent_dim, torch.empty(0, device=device, dtype=dtype))
    if len(x) < 2:
        raise ValueError(f"the sampler {name} is fitted to codes, and there are {len(x)} samples")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if has_codes:
            codes = in_batches(model, lambda part, *_: model.codes(part), x, batch_size=batch_size)
            return CodeSampler(codes.to(device), model.quantizer.sizes, **options)
        probabilistic = is_probabilistic(model)
        code = model.sample_posterior if probabilistic else model.features
        z = in_batches(model, code, x, y, batch_size=batch_size).to(device)
        kinds = {"gmm": GaussianMixture, "flow": FlowSampler, "second-stage": SecondStage}
        return kinds[name](z, **options)


def draw_from(sampler: Sampler, model: Model, n: int, temperature: float, *y: Tensor) -> Tensor:
    """E[x | z] for n draws, (n, *input_shape), as ``model.sample`` gives them."""
    with evaluating(model):
        z = sampler.draw(n, temperature)
        if isinstance(model, HasCodes):
            return model.likelihood.mean(model.decode_codes(z))
        z = z.to(device_and_dtype(model)[1])
        posterior = part_of(model, "posterior")
        if posterior is not None and posterior.has_own_space:
            z = posterior.within(z)
        return model.likelihood.mean(model.decode(z, *y))
