"""An exponential moving average of the weights (Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vae_fast.models.interface import Model
from vae_fast.train.flat import FlatParameters
from vae_fast.train.sharded import like, local


class WeightAverage:
    """Follows a model's parameters: average += (1 - decay) * (parameter - average).

    The first steps use a smaller decay, (1 + step) / (10 + step), to forget the initial weights.

    Args:
        flat: the buffer of the model's parameters, if they are in one; the update then is one op.
    """

    def __init__(self, model: Model, decay: float, flat: FlatParameters | None = None) -> None:
        self.decay = decay
        together = set() if flat is None else {id(p) for p in flat.parameters}
        apart = {name: p for name, p in model.named_parameters() if id(p) not in together}
        self._followed = [p.data for p in apart.values()]
        self._averages = [t.clone() for t in self._followed]
        self._named = dict(zip(apart, self._averages, strict=True))
        if flat is not None:
            names = {id(p): name for name, p in model.named_parameters()}
            self._followed.append(flat.whole.data)
            self._averages.append(flat.whole.data.clone())
            views = flat.views(self._averages[-1])
            self._named |= {
                names[id(p)]: view for p, view in zip(flat.parameters, views, strict=True)
            }
        # For a sharded parameter, this rank's part in place: FSDP gathers it from there.
        self._followed = [local(t) for t in self._followed]
        self._averages = [local(t) for t in self._averages]

    def weight(self, step: int) -> float:
        """The weight of the new weights in the average at ``step`` (0 is the first)."""
        return 1.0 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """Move the average towards the present parameters; ``weight`` may be a 0-d tensor on their
        device."""
        if isinstance(weight, Tensor):
            for average, followed in zip(self._averages, self._followed, strict=True):
                average.lerp_(followed, weight)
        else:
            torch._foreach_lerp_(self._averages, self._followed, weight)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average from the present parameters."""
        for average, followed in zip(self._averages, self._followed, strict=True):
            average.copy_(followed)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, followed in zip(self._averages, self._followed, strict=True):
            kept = followed.clone()
            followed.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._named)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self._named.items():
            value.copy_(like(state[name], value))
