"""Perceptual distances of images, by a network's features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.import_paths import imported


class Perceptual(nn.Module):
    """The squared distance between a frozen network's features, normalised over channels, averaged
    over positions and summed over layers (Zhang et al. 2018, equation 1, without learned weights).

    Args:
        network: images (N, C, H, W) in [0, 1] to a tensor of features (N, F, ...), or several.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        """The distance of each image, (N,), with a gradient for ``made`` only."""
        with torch.no_grad():
            truth = self._features(x)
        total: Any = 0.0
        for a, b in zip(truth, self._features(made), strict=True):
            total = total + (a - b).square().sum(1, keepdim=True).flatten(1).mean(1)
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        found = self.network(x)
        layers = [found] if isinstance(found, Tensor) else list(found)
        # float16's squares overflow, and in it 1e-10 is 0.
        layers = [f.to(torch.promote_types(f.dtype, torch.float32)) for f in layers]
        return [f / f.square().sum(1, keepdim=True).add(1e-10).sqrt() for f in layers]


class LPIPS(nn.Module):
    """The ``lpips`` package's distance, for grey or colour images in [0, 1]."""

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ValueError(
                "perceptual: lpips needs the package lpips: install it, or give the import path of a "
                "network of your own, package.module:Class"
            ) from error
        self.distance = lpips.LPIPS(net=network, verbose=False).eval().requires_grad_(False)
        self._is_checked = False

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        if not self._is_checked and not torch.compiler.is_compiling():
            self._check(x)
            self._is_checked = True  # reading the range waits for the device
        x, made = ((2 * t - 1).expand(-1, 3, -1, -1) for t in (x, made))
        return self.distance(x, made).flatten(1).mean(1)

    @staticmethod
    def _check(x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"lpips compares images of 1 or 3 channels, and the data are {tuple(x.shape[1:])}: "
                "give perceptual the import path of a network for them, package.module:Class"
            )
        low, high = (v.item() for v in x.aminmax()) if x.numel() else (0.0, 1.0)
        if low < 0 or high > 1:
            raise ValueError(
                f"lpips compares images in [0, 1], and the data range from {low:g} to {high:g}: scale "
                "them to [0, 1]"
            )


def make_perceptual(what: str | nn.Module | None) -> nn.Module | None:
    """The distance for "lpips", a network, or the import path of a network's class, which is called
    without arguments; None for None or "none"."""
    if what is None or what == "none":
        return None
    if isinstance(what, nn.Module):
        return Perceptual(what)
    if what == "lpips":
        return LPIPS()
    if ":" not in what:
        raise ValueError(
            f"perceptual must be lpips, none or an import path package.module:Class, got {what!r}"
        )
    return Perceptual(imported(what, "perceptual", nn.Module, "a subclass of nn.Module")())
