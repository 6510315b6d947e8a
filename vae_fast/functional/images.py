"""Images: their similarity (PSNR, SSIM and MS-SSIM, with gradients), edges and halves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.reference import as_probability

# The weights of the scales, finest first (Wang, Simoncelli & Bovik 2003, section 3.2).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of each image, (N,), in decibels, for values in [0, 1]."""
    a, b = _alike(a, b)
    return -10 * (a - b).flatten(1).square().mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity of each image, (N,): the mean over positions and channels.

    Wang et al. 2004, equation 13, with a Gaussian window of 11 x 11 (smaller for smaller images)
    and standard deviation 1.5, at positions where the window lies within the image.

    Args:
        a, b: (N, C, H, W) in [0, 1].
    """
    a, b = _alike(a, b)
    whole, _ = _similarity(a, b)
    return whole


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """The structural similarity over scales of each image, (N,), in [0, 1].

    Wang et al. 2003, equation 7: the product of contrast and structure at five scales, each half
    the previous size, and of luminance at the coarsest, to the powers of ``SCALES``. Small images
    have fewer scales, of 2 pixels or more; their powers sum to 1. Negative factors count as 0.

    Args:
        a, b: (N, C, H, W) in [0, 1].
    """
    a, b = _alike(a, b)
    scales = max(1, min(len(SCALES), min(a.shape[2:]).bit_length() - 1))
    total = sum(SCALES[:scales])
    product = torch.ones_like(a[:, 0, 0, 0])
    for i, power in enumerate(SCALES[:scales]):
        if i > 0:
            a, b = (F.avg_pool2d(t, 2) for t in (a, b))
        whole, structure = _similarity(a, b)
        # The floor keeps the power's derivative finite.
        value = (whole if i == scales - 1 else structure).clamp_min(1e-6)
        product = product * value ** (power / total)
    return product


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and SSIM without luminance, (N,) each."""
    tall, wide = (_blur(side, a) for side in a.shape[2:])

    def blurred(t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):  # variances are small differences
            return tall @ t @ wide.t()

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a * mean_a, blurred(b * b) - mean_b * mean_b
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def _blur(side: int, like: Tensor) -> Tensor:
    """The Gaussian window at each place of ``side`` where it fits, as a matrix (places, side).

    Products with matrices are faster than convolutions with few channels."""
    size = min(WINDOW, side)
    column = torch.arange(side, device=like.device)
    step = column - torch.arange(side - size + 1, device=like.device).unsqueeze(1)
    at = step.to(like.dtype) - (size - 1) / 2
    weight = torch.exp(-at * at / (2 * SIGMA * SIGMA)) * ((step >= 0) & (step < size))
    return weight / weight.sum(1, keepdim=True)


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, at least float32: variances are small differences."""
    if a.dim() != 4 or a.shape != b.shape:
        raise ValueError(
            f"images must be (N, C, H, W), both alike, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise TypeError(
            f"images must be floating point in [0, 1], got {a.dtype} and {b.dtype}: divide bytes by 255"
        )
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide), b.to(wide)


def left_half(x: Tensor) -> Tensor:
    """The images x with their right half black."""
    half = x.clone()
    half[..., x.shape[-1] // 2 :] = 0
    return half


def edges(x: Tensor) -> Tensor:
    """The edge map of images (N, C, H, W): the Sobel gradient's magnitude, clamped to [0, 1]."""
    image = as_probability(x, x.dtype if x.is_floating_point() else torch.float32)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    # (1, 2, 1) / 4 along one dimension and (-1, 0, 1) along the other, without a kernel tensor,
    # which would be copied from the host.
    down = (padded[..., :-2, :] + 2.0 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4.0
    across = (padded[..., :-2] + 2.0 * padded[..., 1:-1] + padded[..., 2:]) / 4.0
    dx, dy = down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]
    return (dx.square() + dy.square()).sqrt().clamp(max=1.0)
