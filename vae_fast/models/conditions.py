"""What a conditional model is conditioned on: labels, attribute vectors, or images.

A condition turns y into (N, features) numbers for the networks. Some make y from x itself, so that
image-to-image translation trains on plain images: half an image, or its edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_fast.models.networks import make_encoder
from vae_fast.models.scripting import NotScriptable
from vae_fast.ops.autograd import is_batched
from vae_fast.reference import as_probability


class Condition(NotScriptable, nn.Module):
    """y to (N, features). ``derive``, if there is one, makes y from x."""

    features: int
    derive: Callable[[Tensor], Tensor] | None = None

    def default(self, n: int, device: torch.device) -> Tensor:
        """The y that ``sample(n)`` takes if none is given."""
        raise ValueError("this model is conditional: give sample() what to condition on")


class Labels(Condition):
    """Class labels (N,), integers 0 .. num_classes - 1, as one-hot vectors.

    -1 stands for an unknown class and becomes zeros; class probabilities (N, num_classes),
    floating, are taken in place of one-hot vectors. The networks see them scaled to a mean square
    of one, as z has: otherwise z's many dimensions drown the one that is not zero, and the
    decoder is slow to heed the label.
    """

    classes: Tensor

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.features = num_classes
        self.scale = num_classes**0.5
        self.register_buffer("classes", torch.arange(num_classes), persistent=False)

    def forward(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.scale * self.one_hot(y, dtype)

    def one_hot(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, num_classes), of the labels or of the class probabilities themselves."""
        if y.is_floating_point():
            if y.dim() != 2 or y.shape[1] != self.features:
                raise ValueError(
                    f"class probabilities must be (N, {self.features}), got {tuple(y.shape)}"
                )
            return y.to(dtype)
        if y.dim() != 1:
            raise ValueError(f"labels must be (N,), got {tuple(y.shape)}")
        # Checked where that waits for no device and breaks no graph; by an op, which can be recorded.
        if y.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batched(y):
            rest = f"is out of range for num_classes={self.features}"
            try:
                fits = (y < self.features) & (y >= -1)
                torch._assert_async(fits.all(), f"a label {rest}")
            except RuntimeError:
                raise ValueError(f"label {int(y[~fits][0])} {rest}") from None
        return y.unsqueeze(1).eq(self.classes).to(dtype)

    def default(self, n: int, device: torch.device) -> Tensor:
        """0, 1, ..., and again, so that a grid of samples has a column per class."""
        return torch.arange(n, device=device) % self.features


class Attributes(Condition):
    """Attribute vectors (N, size), floating: as they are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.features = size

    def forward(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if y.dim() != 2 or y.shape[1] != self.features:
            raise ValueError(f"attributes must be (N, {self.features}), got {tuple(y.shape)}")
        return y.to(dtype)


class Images(Condition):
    """Images, (N, *shape), through a network that gives (N, features).

    Args:
        network: the module, an encoder of ``vae_fast.models.networks`` for instance.
        shape: of one image.
        features: how many the network gives.
        derive: makes the image from x where none is given: ``left_half``, ``edges``, or your own.
    """

    examples: Tensor

    EXAMPLES = 16

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        features: int,
        derive: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = tuple(shape)
        self.features = features
        self.derive = derive
        # Conditions last seen in training, for a sample() that is given none.
        self.register_buffer("examples", torch.zeros(self.EXAMPLES, *self.shape))

    def default(self, n: int, device: torch.device) -> Tensor:
        """Conditions last seen in training, over and over."""
        return self.examples[torch.arange(n, device=device) % self.EXAMPLES]

    def forward(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if tuple(y.shape[1:]) != self.shape:
            raise ValueError(
                f"the condition has shape {tuple(y.shape)}, but the model was built for "
                f"(N, {', '.join(map(str, self.shape))})"
            )
        y = as_probability(y, dtype)
        if self.training:
            n = min(len(y), self.EXAMPLES)
            self.examples[:n].copy_(y[:n].detach())
        return self.network(y)


def left_half(x: Tensor) -> Tensor:
    """The images x with their right half black."""
    half = x.clone()
    half[..., x.shape[-1] // 2 :] = 0
    return half


def edges(x: Tensor) -> Tensor:
    """The edge map of images (N, C, H, W): the Sobel gradient's length, scaled to [0, 1]."""
    image = as_probability(x, x.dtype if x.is_floating_point() else torch.float32)
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    # (1, 2, 1) along one dimension, (-1, 0, 1) along the other, over 4; no kernel, which would
    # have to come from the host.
    down = (padded[..., :-2, :] + 2.0 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4.0
    across = (padded[..., :-2] + 2.0 * padded[..., 1:-1] + padded[..., 2:]) / 4.0
    dx, dy = down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]
    return (dx.square() + dy.square()).sqrt().clamp(max=1.0)


DERIVED = {"left-half": left_half, "edges": edges}


def make_condition(
    condition: str | Condition,
    input_shape: Sequence[int],
    network: str,
    network_options: dict[str, Any],
    *,
    num_classes: int = 10,
    size: int | None = None,
    shape: Sequence[int] | None = None,
    features: int = 64,
) -> Condition:
    """By name, with its options: labels (num_classes), attributes (size), images (shape), or images
    made from x: left-half, edges. ``network`` reads images.
    """
    if isinstance(condition, Condition):
        return condition
    if condition == "labels":
        return Labels(num_classes)
    if condition == "attributes":
        if size is None:
            raise ValueError("condition='attributes' needs condition_options={'size': ...}")
        return Attributes(size)
    if condition == "images" or condition in DERIVED:
        shape = tuple(input_shape if shape is None else shape)
        encoder = make_encoder(network, shape, features, **network_options)
        return Images(encoder, shape, features, derive=DERIVED.get(condition))
    known = ["labels", "attributes", "images", *DERIVED]
    raise ValueError(f"unknown condition {condition!r}; known: {', '.join(known)}")
