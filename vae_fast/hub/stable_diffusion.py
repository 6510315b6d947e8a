"""Load Stable Diffusion's autoencoders (Rombach et al. 2022) from diffusers' files.

model = load_stable_diffusion("stable-diffusion-v1-5/vae")
z = model.sample_posterior(images) * model.scaling_factor   # the diffusion model's input
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.models.autoencoder_kl import AutoencoderKL
from vae_fast.models.likelihoods import Gaussian
from vae_fast.networks.blocks import NormConv, Residual, SelfAttention, Upsample
from vae_fast.networks.maps import Decoder, Encoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Attention layers' names in older files.
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class DownsamplePadded(nn.Conv2d):
    """A 3x3 convolution of stride 2, with zero padding at the bottom and the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(F.pad(h, (0, 1, 0, 1)))


class Signed(nn.Module):
    """[0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x - 1.0


class Unsigned(nn.Module):
    """[-1, 1] to [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5


class StableDiffusionAutoencoder(AutoencoderKL):
    """An AutoencoderKL with the scale and shift of a diffusion model's latents.

    Images are in [0, 1]; the networks use [-1, 1]. The diffusion model's latents are
    (z - ``shift_factor``) * ``scaling_factor``.
    """

    scaling_factor: float = 1.0
    shift_factor: float = 0.0


def load_stable_diffusion(
    folder: str | Path, *, size: int | None = None, scale: float = 1.0
) -> StableDiffusionAutoencoder:
    """Load an autoencoder in diffusers' format, in evaluation mode on the CPU.

    Args:
        folder: holds config.json and diffusion_pytorch_model.safetensors.
        size: height and width of the images; by default the configuration's sample_size. The
            encoder and the decoder take other sizes too; the model's methods need this one.
        scale: the standard deviation of the Gaussian likelihood.

    Raises:
        ValueError: a file is missing, or the architecture is not Stable Diffusion's.
    """
    from vae_fast.extras import need

    folder = Path(folder)
    missing = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}: the folder of an autoencoder in diffusers' "
            "form has both (in a whole pipeline it is the subfolder vae)"
        )
    config = json.loads((folder / "config.json").read_text())
    _check(config, folder)
    weights = need("safetensors.torch", "reading weights").load_file(folder / WEIGHTS)
    return from_state(config, weights, size=size, scale=scale)


def from_state(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    size: int | None = None,
    scale: float = 1.0,
) -> StableDiffusionAutoencoder:
    """``load_stable_diffusion`` from a configuration and weights in memory."""
    widths, z = list(config["block_out_channels"]), config["latent_channels"]
    options = {
        "blocks": config["layers_per_block"],
        "groups": config["norm_num_groups"],
        "head_channels": widths[-1],
        "dropout": 0.0,
    }
    attends = [False] * len(widths)
    encoder = Encoder(
        config["in_channels"], 2 * z, widths, attends, downsample=DownsamplePadded, **options
    )
    decoder = Decoder(z, config["out_channels"], widths, attends, **options)
    left = dict(weights)
    _fill(encoder, _encoder_names(len(widths), options["blocks"]), "encoder.", left)
    _fill(decoder, _decoder_names(len(widths), options["blocks"]), "decoder.", left)
    first, last = [Signed(), encoder], [decoder, Unsigned()]
    if config.get("use_quant_conv", True):
        first.append(_into(nn.Conv2d(2 * z, 2 * z, 1), "quant_conv", left))
    if config.get("use_post_quant_conv", True):
        last.insert(0, _into(nn.Conv2d(z, z, 1), "post_quant_conv", left))
    if left:
        raise ValueError(
            f"the weights have {len(left)} tensors that an autoencoder of this configuration lacks: "
            + ", ".join(sorted(left)[:5])
        )
    side, f = size or config.get("sample_size", 512), 2 ** (len(widths) - 1)
    if side % f:
        raise ValueError(
            f"images of {side} x {side} can't be halved {len(widths) - 1} times: give a size that is "
            f"a multiple of {f}"
        )
    model = StableDiffusionAutoencoder(
        nn.Sequential(*first),
        nn.Sequential(*last),
        input_shape=(config["in_channels"], side, side),
        latent_shape=(z, side // f, side // f),
        likelihood=Gaussian(scale=scale),
    )
    model.scaling_factor = float(config.get("scaling_factor") or 1.0)
    model.shift_factor = float(config.get("shift_factor") or 0.0)
    return model.eval()


def _check(config: Mapping[str, Any], folder: Path) -> None:
    wanted: dict[str, set[Any]] = {
        "_class_name": {"AutoencoderKL"},
        "act_fn": {"silu"},
        "down_block_types": {"DownEncoderBlock2D"},
        "up_block_types": {"UpDecoderBlock2D"},
        "mid_block_add_attention": {True},
    }
    for key, known in wanted.items():
        value = config.get(key, next(iter(known)))
        found = set(value) if isinstance(value, list) else {value}
        if not found <= known:
            raise ValueError(
                f"{folder}/config.json has {key} {value}; Stable Diffusion's autoencoders have "
                f"{next(iter(known))}, and others can't be loaded"
            )


_MIDDLE = ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]


def _encoder_names(levels: int, blocks: int) -> list[str]:
    """diffusers' names of the layers of ``Encoder``, in order."""
    names = ["conv_in"]
    for level in range(levels):
        if level > 0:
            names.append(f"down_blocks.{level - 1}.downsamplers.0.conv")
        names += [f"down_blocks.{level}.resnets.{i}" for i in range(blocks)]
    return [*names, *_MIDDLE, ""]


def _decoder_names(levels: int, blocks: int) -> list[str]:
    names = ["conv_in", *_MIDDLE]
    for level in range(levels):
        if level > 0:
            names.append(f"up_blocks.{level - 1}.upsamplers.0.conv")
        names += [f"up_blocks.{level}.resnets.{i}" for i in range(blocks + 1)]
    return [*names, ""]


def _fill(network: nn.Sequential, names: list[str], prefix: str, left: dict[str, Tensor]) -> None:
    for layer, name in zip(network, names, strict=True):
        at = prefix + name
        if isinstance(layer, Residual):
            for i, part in ((1, layer.first), (2, layer.second)):
                _into(part.norm, f"{at}.norm{i}", left)
                _into(part.conv, f"{at}.conv{i}", left)
            if isinstance(layer.skip, nn.Conv2d):
                _into(layer.skip, f"{at}.conv_shortcut", left)
        elif isinstance(layer, SelfAttention):
            _into(layer.norm, f"{at}.group_norm", left)
            _attention(layer, at, left)
        elif isinstance(layer, NormConv):
            _into(layer.norm, f"{at}conv_norm_out", left)
            _into(layer.conv, f"{at}conv_out", left)
        elif isinstance(layer, Upsample):
            _into(layer.conv, at, left)
        else:
            _into(layer, at, left)


@torch.no_grad()
def _into(layer: nn.Module, name: str, left: dict[str, Tensor]) -> nn.Module:
    """Move a layer's weight and bias from ``left`` to the layer."""
    for part in ("weight", "bias"):
        _copy(getattr(layer, part), [_take(f"{name}.{part}", left)], name)
    return layer


@torch.no_grad()
def _attention(layer: SelfAttention, at: str, left: dict[str, Tensor]) -> None:
    for part in ("weight", "bias"):
        found = [_take_either(at, name, part, left) for name in ("to_q", "to_k", "to_v")]
        _copy(getattr(layer.qkv, part), found, at)
        _copy(getattr(layer.out, part), [_take_either(at, "to_out.0", part, left)], at)


def _take(name: str, left: dict[str, Tensor]) -> Tensor:
    if name not in left:
        raise ValueError(f"the weights have no {name}, which the configuration asks for")
    return left.pop(name)


def _take_either(at: str, name: str, part: str, left: dict[str, Tensor]) -> Tensor:
    old = f"{at}.{_OLD[name]}.{part}"
    return _take(old if old in left else f"{at}.{name}.{part}", left)


def _copy(parameter: Tensor, parts: list[Tensor], name: str) -> None:
    # A 1x1 convolution's weight (C, C, 1, 1) becomes a linear layer's (C, C).
    value = torch.cat([p.flatten(1) if p.dim() == 4 and parameter.dim() == 2 else p for p in parts])
    if value.shape != parameter.shape:
        raise ValueError(
            f"the weights at {name} have shape {tuple(value.shape)}, and the configuration asks for "
            f"{tuple(parameter.shape)}"
        )
    parameter.copy_(value)
