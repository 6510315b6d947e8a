"""Evaluate one model on one data set: all applicable measures in one dictionary of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_fast.evaluate.latents import active_units, kl_per_dimension
from vae_fast.evaluate.scores import accuracy
from vae_fast.functional.images import psnr, ssim
from vae_fast.models.interface import Classifies, Model, ReportsCodes, divides_kl, is_probabilistic
from vae_fast.models.likelihoods import Categorical
from vae_fast.tasks.batched import in_batches
from vae_fast.tasks.encode import features
from vae_fast.tasks.likelihood import (
    bits_per_dimension,
    elbo,
    importance_nll,
    reconstruction_error,
)


def pixel_kind(x: Tensor) -> str:
    """ "binary" if every value is one of two extremes, "grey" if all are between them, else "real", as
    in a table. Results of two kinds cannot be compared."""
    if x.dtype == torch.bool:
        return "binary"
    top = 255 if x.dtype == torch.uint8 else 1
    if bool(((x == 0) | (x == top)).all()):
        return "binary"
    return "grey" if bool(((x >= 0) & (x <= top)).all()) else "real"


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    num_samples: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """ELBO and its parts, NLL, bits per dimension, latent units, reconstruction error, accuracy.

    Args:
        x: (N, *input_shape). y: labels (N,), for conditional models and for accuracy.
        num_samples: K of the importance-sampled NLL; 0 leaves it out.
        seed: the seed of the draws of z; the same seed gives the same report.

    Returns:
        Nats per sample unless the key says otherwise; ``pixels`` says whether the data were
        binary or grey, and ``likelihood`` whether numbers are probabilities or densities.
    """
    if len(x) == 0:
        raise ValueError("there are no samples to evaluate on")
    report: dict[str, Any] = {"samples": len(x), "pixels": pixel_kind(x)}
    discrete = model.likelihood.discrete
    report["likelihood"] = (
        f"{model.likelihood.described} ({'probability' if discrete else 'density'})"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classes, y = (
            y,
            None if isinstance(model, Classifies) else y,
        )  # a classifier explains x alone
        if is_probabilistic(model):
            _add_likelihoods(report, model, x, y, num_samples, batch_size)
        if not _is_text(model, x):
            report["reconstruction_mse"] = _mean(
                reconstruction_error(model, x, y, batch_size=batch_size)
            )
            report |= _image_quality(model, x, y, batch_size)
        if isinstance(model, ReportsCodes):
            codes = in_batches(
                model, lambda part, *_: model.codes(part), x, y, batch_size=batch_size
            )
            report |= model.code_report(codes)
        if isinstance(model, Classifies) and classes is not None and (known := classes >= 0).any():

            def predicted(part: Tensor, *_: Tensor) -> Tensor:
                return model.predict(part).argmax(1)

            found = in_batches(model, predicted, x[known], batch_size=batch_size)
            report["accuracy"] = accuracy(found, classes[known])
    return report


def _add_likelihoods(
    report: dict[str, Any],
    model: Model,
    x: Tensor,
    y: Tensor | None,
    num_samples: int,
    batch_size: int,
) -> None:
    terms = elbo(model, x, y, batch_size=batch_size)
    report["elbo"] = -_mean(terms.loss)
    report["recon"], report["kl"] = _mean(terms.recon), _mean(terms.kl)
    bound = terms.loss
    if num_samples > 0:
        bound = importance_nll(model, x, y, num_samples=num_samples, batch_size=batch_size)
        report["nll"], report["nll_samples"] = _mean(bound), num_samples
    dimensions = model.values_per_sample(x)
    # A density of 8-bit data is converted to the probability of its levels.
    density_of_bytes = not model.likelihood.discrete and x.dtype == torch.uint8
    levels = 256 if density_of_bytes else None
    report["bits_per_dimension"] = bits_per_dimension(_mean(bound), dimensions, levels=levels)
    if divides_kl(model):
        kl = kl_per_dimension(model, x, y, batch_size=batch_size)
        report["kl_per_dimension"] = [round(value, 4) for value in kl.tolist()]
    if len(x) > 1:
        report["active_units"] = active_units(features(model, x, y, batch_size=batch_size))


def _image_quality(model: Model, x: Tensor, y: Tensor | None, batch_size: int) -> dict[str, float]:
    """PSNR (decibels) and SSIM of reconstructions, of images in [0, 1]."""
    if x.dim() != 4 or model.likelihood.target not in ("unit", "level"):
        return {}

    def psnr_and_ssim(part: Tensor, *condition: Tensor) -> Tensor:
        made = model.as_input(model.reconstruct(part, *condition), part.dtype).double()
        truth = model.network_input(part).double()
        return torch.stack([psnr(truth, made), ssim(truth, made)], 1)

    found = in_batches(model, psnr_and_ssim, x, y, batch_size=batch_size).mean(0).tolist()
    return dict(zip(("reconstruction_psnr", "reconstruction_ssim"), found, strict=True))


def _is_text(model: Model, x: Tensor) -> bool:
    """Whether x are sequences of tokens, between which there is no distance."""
    return isinstance(model.likelihood, Categorical) and x.dim() == 2


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
