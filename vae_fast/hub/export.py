"""Encoder, decoder and sampler as programs that do not need this package: torch.export and ONNX.

::

    encoder   x (N, *input_shape), as the data are   ->  mu, logvar, each (N, latent_dim)
    decoder   z (N, latent_dim)                      ->  E[x | z], (N, *input_shape)
    sampler   noise (N, latent_dim), from N(0, 1)    ->  E[x | z] of the prior's z

N is any batch size. A model that is conditioned on labels takes y (N,), int64, as last input. Noise
is an input, so a program is deterministic.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.backend import set_backend
from vae_fast.extras import need
from vae_fast.models.base import LatentModel
from vae_fast.models.interface import Model, uses_labels
from vae_fast.networks import device_and_dtype

FORMATS = ("torch", "onnx")
PARTS = ("encoder", "decoder", "sampler")


class EncoderOf(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mu, logvar = self.model.encode(x) if y is None else self.model.encode(x, y)
        return mu, logvar


class DecoderOf(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        made = self.model.decode(z) if y is None else self.model.decode(z, y)
        return self.model.likelihood.mean(made)


def programs(model: Model) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], Sequence[str]]]:
    """Each part of a model: a module, example inputs, and the inputs' names.

    Raises:
        ValueError: the model has no single latent vector z, so it has no such encoder or decoder.
    """
    if not isinstance(model, LatentModel) or not model.is_probabilistic:
        raise ValueError(
            f"{type(model).__name__} can't be exported: encoder and decoder have to pass one "
            "Gaussian z, (N, latent_dim), as those of vae, beta-vae, iwae, cvae or autoencoder-kl do"
        )
    device, dtype = device_and_dtype(model)
    x = torch.rand(2, *model.input_shape, device=device, dtype=dtype)
    z = torch.randn(2, model.latent_dim, device=device, dtype=dtype)
    y: tuple[Tensor, ...] = ()
    names: list[str] = []
    if uses_labels(model):
        y, names = (torch.zeros(2, dtype=torch.int64, device=device),), ["y"]
    decoder = DecoderOf(model)
    parts: dict[str, tuple[nn.Module, tuple[Tensor, ...], Sequence[str]]] = {
        "encoder": (EncoderOf(model), (x, *y), ["x", *names]),
        "decoder": (decoder, (z, *y), ["z", *names]),
    }
    if model.learned_prior is None:  # a learned prior would also have to draw a component
        parts["sampler"] = (decoder, (z, *y), ["noise", *names])
    return parts


def export(
    model: Model, folder: str | Path, format: str = "torch", parts: Sequence[str] = PARTS
) -> list[Path]:
    """Write the parts of a trained model to ``folder``, as NAME.pt2 or NAME.onnx.

    Args:
        model: in evaluation mode, for example from ``tasks.load_model``.
        format: "torch" (torch.export; load it with ``torch.export.load(path).module()``) or "onnx"
            (needs onnx and onnxscript).
        parts: of "encoder", "decoder", "sampler"; a model with a learned prior has no sampler.

    Returns:
        The files written.

    Raises:
        ValueError: an unknown format or part, or a model without such parts.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts must be of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if format == "onnx":
        need("onnx", "writing ONNX files", "onnx onnxscript")
        need("onnxscript", "writing ONNX files", "onnx onnxscript")
    folder = Path(folder)
    found = programs(model)
    folder.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    try:
        with set_backend("reference"), torch.no_grad():
            return [
                _write(folder, format, part, *found[part]) for part in PARTS
                if part in parts and part in found
            ]  # fmt: skip
    finally:
        model.train(was_training)


def _write(
    folder: Path, format: str, part: str, module: nn.Module, inputs: tuple[Tensor, ...],
    names: Sequence[str],
) -> Path:  # fmt: skip
    from vae_fast.files import atomic_write

    batch = torch.export.Dim("batch", min=1)
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in inputs)
    path = folder / f"{part}.{'pt2' if format == 'torch' else 'onnx'}"
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    with atomic_write(path) as temporary:
        if format == "torch":
            with open(temporary, "wb") as file:
                torch.export.save(program, file)
        else:
            outputs = ["mu", "logvar"] if part == "encoder" else ["x"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = torch.onnx.export(
                    program, dynamo=True, input_names=list(names), output_names=outputs,
                    verbose=False,
                )  # fmt: skip
            if made is None:
                raise RuntimeError("torch.onnx.export returned no program")
            made.save(str(temporary))
    return path
