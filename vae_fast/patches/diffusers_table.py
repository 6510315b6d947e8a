"""diffusers' autoencoders (Rombach et al. 2022): the Gaussian posterior, and GroupNorm with SiLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_fast.functional import gaussian_kl, group_norm_silu, nll
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


def _pair(norm: nn.Module, activation: nn.Module, h: Tensor) -> Tensor | None:
    """SiLU of GroupNorm in one pass; None where these are others, or somebody watches them."""
    watched = (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks
               for m in (norm, activation))  # fmt: skip
    known = type(norm) is nn.GroupNorm and type(activation) is nn.SiLU
    if not known or any(watched) or torch.is_autocast_enabled(h.device.type):
        return None
    return group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _block(original: Callable) -> Callable:
    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args, **kwargs) -> Tensor:
        # An autoencoder's blocks: no embedding of a time, and the same size as before.
        plain = temb is None and self.time_emb_proj is None and not args and not kwargs
        plain = plain and self.time_embedding_norm != "scale_shift"
        plain = plain and self.upsample is None and self.downsample is None
        h = _pair(self.norm1, self.nonlinearity, input_tensor) if plain else None
        if h is None:
            return original(self, input_tensor, temb, *args, **kwargs)
        h = self.conv1(h)
        second = _pair(self.norm2, self.nonlinearity, h)
        h = self.nonlinearity(self.norm2(h)) if second is None else second
        h = self.conv2(self.dropout(h))
        kept = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return (kept + h) / self.output_scale_factor

    return forward


_BLOCK = "diffusers.models.resnet.ResnetBlock2D."
_POSTERIOR = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution."


def _targets(noise: Noise) -> list[Target]:
    made = (f"{_POSTERIOR}__init__", ("cb5984bf4cdcc88d",))
    found = [
        Target(f"{_POSTERIOR}kl", ("129f5f1f7080c32d",), _kl, uses=(made,)),
        Target(
            f"{_BLOCK}forward",
            ("a30ae9277b79e8d2",),
            _block,
            uses=((f"{_BLOCK}__init__", ("310d2fb0306e4dc5",)),),
        ),
        Target(f"{_POSTERIOR}nll", ("aaa98e66794fbc5d",), _nll, uses=(made,)),
    ]
    if noise == "native":
        found.append(Target(f"{_POSTERIOR}sample", ("d5049f2879b2962a",), _sample, uses=(made,)))
    return found


TABLE = Table("diffusers", ("0.30", "0.43"), _targets)
