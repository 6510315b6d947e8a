"""Samplers: where z comes from once a model is trained, in place of its prior."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from vae_fast.functional.checks import check_finite
from vae_fast.models.interface import HasCodes, Model, is_probabilistic, part_of
from vae_fast.models.objectives.riemannian import Riemannian
from vae_fast.networks import device_and_dtype
from vae_fast.tasks.batched import evaluating, in_batches
from vae_fast.tasks.samplers.learned import CodeSampler, FlowSampler, SecondStage
from vae_fast.tasks.samplers.metric import MetricSampler
from vae_fast.tasks.samplers.mixture import GaussianMixture

_OF_VECTORS: dict[str, Callable[..., Any]] = {
    "gmm": GaussianMixture,
    "flow": FlowSampler,
    "maf": partial(FlowSampler, kind="maf"),
    "iaf": partial(FlowSampler, kind="iaf"),
    "realnvp": partial(FlowSampler, kind="realnvp"),
    "second-stage": SecondStage,
}
SAMPLERS = ("prior", "normal", *_OF_VECTORS, "pixelcnn", "metric")
# The samplers that are fitted to codes. A run's folder keeps them.
FITTED = (*_OF_VECTORS, "pixelcnn")


class Sampler(Protocol):
    """Draws (n, latent_dim) of z; ``CodeSampler``, codes (n, *places, C)."""

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """n draws; a temperature below 1 makes them more typical and less varied."""


class Normal:
    """N(0, temperature^2), whatever the model's prior is."""

    def __init__(self, dim: int, like: Tensor) -> None:
        self.dim, self.like = dim, like

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        return temperature * self.like.new_empty(n, self.dim).normal_()


def make_sampler(name: str, model: Any, **options: Any) -> Sampler | None:
    """A sampler of the model's codes, on its device; None for "prior", the model's own.

    Samplers in ``FITTED`` still have to be fitted.

    Args:
        name: "normal"; "gmm", a mixture of Gaussians (``components``=10); "flow" (``kind``: maf, iaf,
            realnvp; ``steps``=2000), also by the kind's name; "second-stage", another VAE
            (``steps``=3000); "pixelcnn", over a vq-vae's codes (``steps``=2000, ``channels``=64,
            ``layers``=6); "metric", by the objective riemannian's metric (``proposals``=100).

    Raises:
        ValueError: an unknown name, or a sampler that the model's codes don't fit.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if "steps" in options and name in ("prior", "normal", "gmm", "metric"):
        raise ValueError(f"the sampler {name} is not trained in steps: give no number of them")
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
    if name == "metric":
        objective = part_of(model, "objective")
        if not isinstance(objective, Riemannian):
            raise ValueError(
                "the sampler metric is for models of the objective riemannian, and this one's is "
                f"{getattr(objective, 'name', 'elbo')}: take another sampler"
            )
        return MetricSampler(objective, **options)
    if has_codes:
        made = CodeSampler(model.code_shape, model.quantizer.sizes, **options)
    else:
        made = _OF_VECTORS[name](model.latent_dim, **options)
    return made.to(device)


def fit_sampler(
    name: str,
    model: Any,
    x: Tensor | None,
    y: Tensor | None = None,
    *,
    seed: int | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Sampler | None:
    """``make_sampler``, fitted to the codes of x.

    Args:
        x: (N, *input_shape), training data; None if nothing is fitted. y: the conditions of x, for a
            conditional model.
        seed: the seed of posterior draws and training; the same seed fits the same sampler.
    """
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        made: Any = make_sampler(name, model, **options)
        if name not in FITTED:
            return made
        if x is None or len(x) < 2:
            count = 0 if x is None else len(x)
            raise ValueError(
                f"the sampler {name} is fitted to codes of at least 2 samples x, and there are {count}"
            )
        if name == "pixelcnn":
            codes = in_batches(model, lambda part, *_: model.codes(part), x, batch_size=batch_size)
        else:
            probabilistic = is_probabilistic(model)
            code = model.sample_posterior if probabilistic else model.features
            codes = in_batches(model, code, x, y, batch_size=batch_size)
        check_finite("codes", codes)
        return made.fit(codes.to(device_and_dtype(model)[0]))


def draw_from(sampler: Sampler, model: Model, n: int, temperature: float, *y: Tensor) -> Tensor:
    """E[x | z] for n draws, (n, *input_shape), as ``model.sample`` gives them."""
    with evaluating(model):
        z = sampler.draw(n, temperature)
        if isinstance(model, HasCodes):
            return model.likelihood.mean(model.decode_codes(z))
        z = z.to(device_and_dtype(model)[1])
        posterior = part_of(model, "posterior")
        if posterior is not None and posterior.has_own_space:
            z = posterior.project(z)
        return model.likelihood.mean(model.decode(z, *y))
