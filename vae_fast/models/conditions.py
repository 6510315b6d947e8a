"""Conditions y of conditional models: labels, attribute vectors, or images.

A condition turns y into features, (N, features), for the networks. Some derive y from x, such as
half of an image or its edges, so that image-to-image translation trains on plain images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.functional.images import edges, left_half
from vae_fast.networks.chosen import NetworkChoice
from vae_fast.networks.scripting import NotScriptable
from vae_fast.ops.autograd import is_batched
from vae_fast.reference import as_probability


class Condition(NotScriptable, nn.Module):
    """Maps y to (N, features). ``derive`` computes y from x, or is None."""

    features: int
    derive: Callable[[Tensor], Tensor] | None = None

    def default(self, n: int, device: torch.device) -> Tensor:
        """The y that ``sample(n)`` uses if none is given; ValueError if there is no default."""
        raise ValueError("this model is conditional: give sample() what to condition on")


class Labels(Condition):
    """Class labels (N,), integers 0 .. num_classes - 1, as one-hot vectors.

    -1 is an unknown class and becomes zeros. Floating y is class probabilities (N, num_classes),
    used instead of one-hot vectors. The networks see them multiplied by sqrt(num_classes), which
    gives a one-hot vector z's mean square of one. Without this scale the decoder learns to use the
    label slowly.
    """

    classes: Tensor

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.features = num_classes
        self.scale = num_classes**0.5
        self.register_buffer("classes", torch.arange(num_classes), persistent=False)

    def forward(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.scale * self.one_hot(y, dtype)

    def one_hot(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """One-hot vectors of labels, or the given class probabilities, (N, num_classes)."""
        if y.is_floating_point():
            if y.dim() != 2 or y.shape[1] != self.features:
                raise ValueError(
                    f"class probabilities must be (N, {self.features}), got {tuple(y.shape)}"
                )
            return y.to(dtype)
        if y.dim() != 1:
            raise ValueError(f"labels must be (N,), got {tuple(y.shape)}")
        # Checked only where this neither waits for a device nor breaks a graph, and by an op, which
        # tracers can record.
        if y.device.type == "cpu" and not torch.compiler.is_compiling() and not is_batched(y):
            rest = f"is out of range for num_classes={self.features}"
            try:
                fits = (y < self.features) & (y >= -1)
                torch._assert_async(fits.all(), f"a label {rest}")
            except RuntimeError:
                raise ValueError(f"label {int(y[~fits][0])} {rest}") from None
        return y.unsqueeze(1).eq(self.classes).to(dtype)

    def default(self, n: int, device: torch.device) -> Tensor:
        """0, 1, ..., num_classes - 1, repeated: a grid of samples has a column per class."""
        return torch.arange(n, device=device) % self.features


class Attributes(Condition):
    """Floating attribute vectors (N, size), unchanged."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_count("size", size)
        self.features = size

    def forward(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        if y.dim() != 2 or y.shape[1] != self.features:
            raise ValueError(f"attributes must be (N, {self.features}), got {tuple(y.shape)}")
        return y.to(dtype)


class Images(Condition):
    """Images (N, *shape), mapped by a network to (N, features).

    Args:
        network: a module, such as an encoder of ``vae_fast.networks``.
        shape: the shape of one image.
        features: the network's number of outputs.
        derive: computes the image from x if none is given: ``left_half``, ``edges`` or your own.
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
        # The latest training conditions, for sample() without a condition.
        self.register_buffer("examples", torch.zeros(self.EXAMPLES, *self.shape))

    def default(self, n: int, device: torch.device) -> Tensor:
        """The latest training conditions, repeated."""
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


DERIVED = {"left-half": left_half, "edges": edges}


def make_condition(
    condition: str | Condition,
    input_shape: Sequence[int],
    networks: NetworkChoice,
    *,
    num_classes: int = 10,
    size: int | None = None,
    shape: Sequence[int] | None = None,
    features: int = 64,
) -> Condition:
    """A condition by name, or the given one.

    Names, with their options: labels (num_classes), attributes (size), images (shape, features),
    and left-half and edges, images derived from x. ``networks`` has the
    encoder of images.
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
        encoder = networks.encoder(shape, features)
        return Images(encoder, shape, features, derive=DERIVED.get(condition))
    known = ["labels", "attributes", "images", *DERIVED]
    raise ValueError(f"unknown condition {condition!r}; known: {', '.join(known)}")
