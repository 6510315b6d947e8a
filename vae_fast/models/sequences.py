"""Data as sequences of steps, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_fast.models.likelihoods import Likelihood


class Sequences:
    """A mixin that converts data to steps and back. It needs ``input_shape``, ``padding`` and
    ``likelihood``."""

    input_shape: tuple[int, ...]
    padding: float | None
    likelihood: Likelihood

    def to_steps(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x as steps (N, T, F) with zeros for padding, and the lengths (N,). Without ``lengths``, a
        sequence ends at its last step that is not ``padding``."""
        shape = self.input_shape
        fits = x.dim() == len(shape) + 1 and x.shape[1] > 0
        if len(shape) == 3:
            fits = fits and tuple(x.shape[1:]) == shape
        elif len(shape) == 2:
            fits = fits and x.shape[2] == shape[1]
        if not fits:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but the model was built for sequences "
                f"(N, {', '.join(map(str, shape))}), whose length alone may differ"
            )
        if len(shape) == 3:
            steps = x.transpose(1, 2).flatten(2)
        else:
            steps = x.unsqueeze(2) if len(shape) == 1 else x
        n, t = steps.shape[:2]
        whole = lengths is None and self.padding is None
        if lengths is None:
            lengths = self._find_lengths(steps)
        if tuple(lengths.shape) != (n,):
            raise ValueError(f"lengths must be ({n},), got {tuple(lengths.shape)}")
        if whole:
            return steps, lengths
        inside = torch.arange(t, device=x.device) < lengths.unsqueeze(1)
        return steps.masked_fill(~inside.unsqueeze(2), 0), lengths.clamp(0, t)

    def _find_lengths(self, steps: Tensor) -> Tensor:
        n, t = steps.shape[:2]
        if self.padding is None:
            return torch.full((n,), t, device=steps.device)
        if math.isnan(self.padding):
            real = ~steps.isnan().any(2)
        else:
            real = (steps != self.padding).any(2)
        return (real * torch.arange(1, t + 1, device=steps.device)).amax(1)

    def from_steps(self, params: Tensor) -> Tensor:
        """The steps' parameters (N, T, P * F), in the likelihood's layout for x."""
        p = self.likelihood.parameters_per_element
        params = params.unflatten(2, (p, -1)).transpose(1, 2)  # (N, P, T, F)
        if len(self.input_shape) == 3:
            channels, _, width = self.input_shape
            params = params.unflatten(3, (channels, width)).transpose(2, 3)
        elif len(self.input_shape) == 1:
            params = params.squeeze(3)
        return params.flatten(1, 2)
