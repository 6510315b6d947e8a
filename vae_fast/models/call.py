"""The arguments of a model's loss as one value, and what the losses compute from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fast import noise
from vae_fast.functional import reparameterize
from vae_fast.models.gaussian import Draw
from vae_fast.models.interface import Model
from vae_fast.reference import reduce
from vae_fast.types import LossOutput, Reduction


class Call(NamedTuple):
    """The arguments of ``model.loss``; ``condition`` is what follows x."""

    model: Model
    x: Tensor
    condition: tuple[Any, ...]
    beta: float | Tensor
    free_bits: float
    reduction: Reduction
    noise_key: Tensor | None

    def draw(self) -> Draw:
        """The model's ``draw`` for x."""
        return self.model.draw(self.x, *self.condition, noise_key=self.noise_key)

    def nll_at(self, z: Tensor) -> Tensor:
        """-log p(x | z) of each sample, (N,), in nats."""
        options = self.model.nll_options(self.noise_key)
        return self.model.nll_at(self.x, z, *self.condition, **options)

    def mean_at(self, z: Tensor) -> Tensor:
        """E[x | z], scaled like ``network_input``."""
        params = self.model.decode(z, *self.condition)
        params = params.to(torch.promote_types(params.dtype, torch.float32))  # of autocast
        made = self.model.as_input(self.model.likelihood.mean(params), self.x.dtype)
        if params.requires_grad and not made.requires_grad:
            raise ValueError(
                f"this loss needs the gradient of E[x | z], and classes ({self.model.likelihood.described}) "
                "have none: use another likelihood, or another objective"
            )
        return made

    def normals(self, like: Tensor, stream: int = 1) -> Tensor:
        """Draws from N(0, 1) in the shape of ``like``; the noise stream 0 is that of z's draw."""
        zeros = torch.zeros_like(like)
        return reparameterize(zeros, zeros, noise_key=self.stream(stream))

    @torch.no_grad()
    def from_prior(self, like: Tensor) -> Tensor:
        """z of the model's prior for each sample, in the shape of ``like``, without gradients."""
        return self.model.prior_from(self.normals(like), self.stream(2), *self.condition)

    def repeatable(self) -> Call:
        """This call with a noise key, so that ``nll_at`` has the same noise every time."""
        if self.noise_key is not None:
            return self
        return self._replace(noise_key=noise.new_key(self.x.device))

    def stream(self, i: int) -> Tensor | None:
        """The i-th noise key of this call; None draws new noise."""
        return None if self.noise_key is None else streams_of(self.noise_key, i)

    def output(self, loss: Tensor, recon: Tensor, kl: Tensor) -> LossOutput:
        """The reduced terms, from those of each sample, (N,)."""
        # (N, 1): reduce would read (N,) as one sample with N features.
        return LossOutput(*(reduce(t.unsqueeze(1), self.reduction) for t in (loss, recon, kl)))

    def refuse(self, free_bits: str | None = None, none: str | None = None) -> None:
        """Raise ValueError for free bits or for reduction="none", with the reason given."""
        if free_bits is not None and self.free_bits > 0:
            raise ValueError(f"free_bits {free_bits}: leave it 0")
        if none is not None and self.reduction == "none":
            raise ValueError(f"{none} is defined on a batch: use batchmean or sum")


def phases_wanted(phase: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The phases whose losses ``loss(x, phase=phase)`` adds up; ValueError for an unknown one."""
    if phase is not None and phase not in known:
        raise ValueError(f"unknown phase {phase!r}; known: {', '.join(known)}")
    return known if phase is None else (phase,)


def refuse_unknown(name: str, loss: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError if a loss's ``options`` are not among those that ``loss`` takes."""
    if not options or torch.compiler.is_compiling():
        return
    known = inspect.signature(loss).parameters.values()
    unknown = sorted(options.keys() - {p.name for p in known})
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known):
        hint = ""
        if "lengths" in unknown:
            hint = (
                ": give the model padding=VALUE, the value that pads sequences, and pad x with it"
            )
        raise TypeError(f"{name}'s loss takes no {', '.join(unknown)}{hint}")


def streams_of(noise_key: Tensor, i: int) -> Tensor:
    """The i-th of many keys made from one: the same Philox key, the i-th stream after its own."""
    return torch.stack([noise_key[0], noise_key[1] + i])  # no copy from the host
