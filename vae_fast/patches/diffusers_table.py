"""diffusers' Gaussian posterior of an autoencoder (Rombach et al. 2022): sample, kl, nll."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae_fast.functional import gaussian_kl, nll
from vae_fast.functional.gaussian import reparameterize
from vae_fast.noise import new_key
from vae_fast.patches.core import Noise, Table, Target


def _fits(self) -> bool:
    """Whether this is a posterior as the class makes it: nobody set its parts otherwise since."""
    return not self.deterministic and self.mean.dim() == 4 and self.mean.shape == self.logvar.shape


def _sample(original: Callable) -> Callable:
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        # A list of generators has one for each image, and deterministic posteriors have no noise.
        one = generator is None or isinstance(generator, torch.Generator)
        if (
            not _fits(self)
            or not one
            or (generator is not None and generator.device != self.mean.device)
        ):
            return original(self, generator)
        key = new_key(self.mean.device, generator)
        z = reparameterize(self.mean, self.logvar, noise_key=key)
        if self.parameters.is_contiguous(memory_format=torch.channels_last):
            return z.contiguous(memory_format=torch.channels_last)
        return z

    return sample


def _kl(original: Callable) -> Callable:
    def kl(self, other=None) -> Tensor:
        if not _fits(self) or (other is not None and not _fits(other)):
            return original(self, other)
        prior = (None, None) if other is None else (other.mean, other.logvar)
        value = gaussian_kl(self.mean, self.logvar, *prior, reduction="none")
        return value.to(self.mean.dtype)

    return kl


def _nll(original: Callable) -> Callable:
    def negative_log_likelihood(self, sample: Tensor, dims=(1, 2, 3)) -> Tensor:
        whole = tuple(dims) == (1, 2, 3) and sample.shape == self.mean.shape
        if not _fits(self) or not whole or sample.requires_grad:
            return original(self, sample, dims)
        value = nll("gaussian", [self.mean, 0.5 * self.logvar], sample, reduction="none")
        return value.to(self.mean.dtype)

    return negative_log_likelihood


_POSTERIOR = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution."


def _targets(noise: Noise) -> list[Target]:
    made = (f"{_POSTERIOR}__init__", ("cb5984bf4cdcc88d",))
    found = [
        Target(f"{_POSTERIOR}kl", ("129f5f1f7080c32d",), _kl, uses=(made,)),
        Target(f"{_POSTERIOR}nll", ("aaa98e66794fbc5d",), _nll, uses=(made,)),
    ]
    if noise == "native":
        found.append(Target(f"{_POSTERIOR}sample", ("d5049f2879b2962a",), _sample, uses=(made,)))
    return found


TABLE = Table("diffusers", ("0.30", "0.43"), _targets)
