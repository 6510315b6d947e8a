"""Binarised images: pixels drawn from Bernoulli(x / 255), every epoch or once.

Salakhutdinov and Murray 2008 draw MNIST's pixels this way. Likelihoods of binary and of grey
images, or of two different draws, cannot be compared, so reports say which images they used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vae_fast.data.arrays import ArrayData
from vae_fast.data.order import noise_key
from vae_fast.functional import gather_batch


def check_binarizable(data: Any) -> None:
    """Raise unless the pixels are bytes, which stand for probabilities, or already binary."""
    if data.dtype not in (torch.uint8, torch.bool):
        raise TypeError(
            f"{data.name}: binarising takes uint8 images (0..255), and these are {data.dtype}; "
            "convert them: (255 * images).round().to(torch.uint8)"
        )


def binarized_once(data: Any, seed: int) -> ArrayData:
    """The data with every pixel drawn once, as bool. A sample is the same in every epoch.

    The draws depend only on the seed and the sample's place in the data.

    Raises:
        TypeError: the images aren't uint8 or bool.
        ValueError: the data aren't in memory, where the drawn images could be kept.
    """
    check_binarizable(data)
    if not isinstance(data, ArrayData) or data.mapped:
        raise ValueError(
            f"{data.name}: static binarisation draws all images once and keeps them, so the data must "
            "be in memory; use dynamic, or load the array yourself (np.load) and pass it"
        )
    every = torch.arange(len(data), device=data.images.device)
    # Another stream than that of a pass of `Batches`, which may be over the validation data.
    key = noise_key(seed) + torch.tensor([0, 1])
    images = gather_batch(data.dense_images, every, mode="binarize", noise_key=key.to(every.device))
    provenance = f"{data.provenance}; binarised once, seed {seed}"
    return replace(data, images=images, provenance=provenance)
