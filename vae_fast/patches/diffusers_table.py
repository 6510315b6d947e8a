"""diffusers' autoencoders (Rombach et al. 2022): the Gaussian posterior, GroupNorm with SiLU and in
attention, and the convolution of a doubled image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.functional import gaussian_kl, group_norm_silu, nll
from vae_fast.functional.gaussian import reparameterize
from vae_fast.functional.group_norm import group_norm
from vae_fast.noise import new_key
from vae_fast.patches.core import Noise, Table, Target
from vae_fast.upsampling import spread


def _fits(self: Any) -> bool:
    """Whether the posterior's attributes are unchanged since its construction."""
    return not self.deterministic and self.mean.dim() == 4 and self.mean.shape == self.logvar.shape


def _sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample(self: Any, generator: torch.Generator | None = None) -> Tensor:
        # A list of generators has one per image, and deterministic posteriors have no noise.
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


def _kl(original: Callable[..., Any]) -> Callable[..., Any]:
    def kl(self: Any, other: Any = None) -> Tensor:
        if not _fits(self) or (other is not None and not _fits(other)):
            return original(self, other)
        prior = (None, None) if other is None else (other.mean, other.logvar)
        value = gaussian_kl(self.mean, self.logvar, *prior, reduction="none")
        return value.to(self.mean.dtype)

    return kl


def _nll(original: Callable[..., Any]) -> Callable[..., Any]:
    def negative_log_likelihood(self: Any, sample: Tensor, dims: Any = (1, 2, 3)) -> Tensor:
        whole = tuple(dims) == (1, 2, 3) and sample.shape == self.mean.shape
        if not _fits(self) or not whole or sample.requires_grad:
            return original(self, sample, dims)
        value = nll("gaussian", [self.mean, 0.5 * self.logvar], sample, reduction="none")
        return value.to(self.mean.dtype)

    return negative_log_likelihood


def _watched(module: nn.Module) -> bool:
    """Whether a call of the module runs anything but its class's forward."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    hooks = hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _pair(norm: nn.Module, activation: nn.Module, h: Tensor) -> Tensor:
    """activation(norm(h)); SiLU of GroupNorm in one pass if neither module has a hook."""
    known = type(norm) is nn.GroupNorm and type(activation) is nn.SiLU
    known = known and not _watched(norm) and not _watched(activation)
    if not known or torch.is_autocast_enabled(h.device.type):
        return activation(norm(h))
    assert isinstance(norm, nn.GroupNorm)  # known
    return group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _block(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        # Only an autoencoder's blocks: without a time embedding, and of unchanged size.
        plain = temb is None and self.time_emb_proj is None and not args and not kwargs
        plain = plain and self.time_embedding_norm != "scale_shift"
        plain = plain and self.upsample is None and self.downsample is None
        if not plain:
            return original(self, input_tensor, temb, *args, **kwargs)
        h = self.conv1(_pair(self.norm1, self.nonlinearity, input_tensor))
        h = self.conv2(self.dropout(_pair(self.norm2, self.nonlinearity, h)))
        kept = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        made = kept + h
        return made if self.output_scale_factor == 1 else made / self.output_scale_factor

    return forward


def _attention(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(
        self: Any,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        norm = attn.group_norm
        # An autoencoder's: of an image's own positions, with GroupNorm and the residual.
        if (
            type(norm) is not nn.GroupNorm
            or _watched(norm)
            or hidden_states.dim() != 4
            or encoder_hidden_states is not None
            or attention_mask is not None
            or args
            or kwargs
            or (attn.spatial_norm, attn.norm_q, attn.norm_k) != (None, None, None)
            or not attn.residual_connection
            or torch.is_autocast_enabled(hidden_states.device.type)
        ):
            return original(
                self, attn, hidden_states, encoder_hidden_states, attention_mask, temb,
                *args, **kwargs,
            )  # fmt: skip
        h = group_norm(hidden_states, norm.num_groups, norm.weight, norm.bias, norm.eps)
        tokens = h.flatten(2).transpose(1, 2)  # no copy if channels-last
        q, k, v = (
            layer(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        gathered = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # a linear layer and dropout
            gathered = layer(gathered)
        added = gathered.transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        made = added + hidden_states
        factor = attn.rescale_output_factor
        return made if factor == 1 else made / factor

    return __call__


def _encoder(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, sample: Tensor) -> Tensor:
        if self.gradient_checkpointing:
            return original(self, sample)
        h = self.conv_in(sample)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(_pair(self.conv_norm_out, self.conv_act, self.mid_block(h)))

    return forward


def _decoder(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, sample: Tensor, latent_embeds: Tensor | None = None) -> Tensor:
        if self.gradient_checkpointing or latent_embeds is not None:
            return original(self, sample, latent_embeds)
        h = self.mid_block(self.conv_in(sample), None)
        for block in self.up_blocks:
            h = block(h, None)
        return self.conv_out(_pair(self.conv_norm_out, self.conv_act, h))

    return forward


def _upsample(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        conv = getattr(self, "conv", None)
        if (
            type(conv) is not nn.Conv2d
            or (conv.kernel_size, conv.padding, conv.stride) != ((3, 3), (1, 1), (1, 1))
            or (conv.dilation, conv.groups, conv.padding_mode) != ((1, 1), 1, "zeros")
            or not self.interpolate
            or self.norm is not None
            or output_size is not None
            or args
            or kwargs
            or _watched(conv)
            # In half precision, sums of taps would be rounded; on a GPU nothing was measured.
            or {hidden_states.dtype, conv.weight.dtype} != {torch.float32}
            or not hidden_states.is_cpu
            or hidden_states.dim() != 4
            or hidden_states.shape[1] != self.channels
            or torch.is_autocast_enabled("cpu")
        ):
            return original(self, hidden_states, output_size, *args, **kwargs)
        return F.conv_transpose2d(hidden_states, spread(conv.weight), conv.bias, 2, 1)

    return forward


_BLOCK = "diffusers.models.resnet.ResnetBlock2D."
_UPSAMPLE = "diffusers.models.upsampling.Upsample2D."
_ATTENTION = "diffusers.models.attention_processor.AttnProcessor2_0.__call__"
_VAE = "diffusers.models.autoencoders.vae."
_POSTERIOR = f"{_VAE}DiagonalGaussianDistribution."


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
        Target(_ATTENTION, ("d5a292e89ccd77a2",), _attention),
        Target(f"{_VAE}Encoder.forward", ("629b31442a1244ee",), _encoder),
        Target(f"{_VAE}Decoder.forward", ("f745d319263a350b",), _decoder),
        Target(
            f"{_UPSAMPLE}forward",
            ("fde16958d16c179e",),
            _upsample,
            uses=((f"{_UPSAMPLE}__init__", ("27a7eec34213dd30",)),),
        ),
        Target(f"{_POSTERIOR}nll", ("aaa98e66794fbc5d",), _nll, uses=(made,)),
    ]
    if noise == "native":
        found.append(Target(f"{_POSTERIOR}sample", ("d5049f2879b2962a",), _sample, uses=(made,)))
    return found


TABLE = Table("diffusers", ("0.30", "0.43"), _targets)
