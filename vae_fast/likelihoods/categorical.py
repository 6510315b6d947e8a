"""Categorical: a probability of classes 0, 1, ..., with logits (N, C, ...) and classes (N, ...).

-log p = logsumexp(l) - l_x, in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.likelihoods.spec import Spec, Truth, normals, widened
from vae_fast.likelihoods.truth import positions


def terms(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(widened(logits)[0], target.long(), reduction="none")


def mean(logits: Tensor) -> Tensor:
    """The most probable class, int64: classes have no average."""
    return logits.argmax(1)


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    probabilities = widened(logits)[0].softmax(1).movedim(1, -1)
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1])


def inputs(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, classes: int = 7
) -> tuple[list[Tensor], Tensor]:
    """Logits of standard deviation 4, so that some classes are nearly certain."""
    n, *rest = shape
    logits = 4.0 * normals((n, classes, *rest), generator)
    target = torch.randint(
        classes, (n, *rest), generator=generator, device=generator.device, dtype=torch.int64
    )
    return [logits.to(dtype)], target


def truth(logits: Tensor, target: Tensor) -> Truth:
    def nll(mp: Any, values: Any, x: Any) -> Any:
        return mp.log(mp.fsum(mp.exp(v - values[int(x[0])]) for v in values))

    return positions(nll, logits, target.unsqueeze(1))


SPECS = (
    Spec("categorical", ("logits",), "category", terms, mean, sample, inputs, truth, planes=1),
)
