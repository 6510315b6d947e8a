"""The VQ-VAE (van den Oord et al. 2017), with any quantiser: a latent of discrete codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional.kmeans import count
from vae_fast.joined import RunningMeans
from vae_fast.models.base import Deterministic
from vae_fast.models.call import Call
from vae_fast.models.gaussian import Draw, Posterior, point_mass
from vae_fast.models.quantize import Quantized, Quantizer, perplexity
from vae_fast.networks import device_and_dtype
from vae_fast.types import LossOutput

MOST_COUNTED = 1 << 20  # the largest table of frequencies, (positions, values of a code)


class VQVAE(RunningMeans, Deterministic):
    """z = quantise(encoder(x)): at each of P positions a D-vector, given by C integer codes.

    The public methods take and return flat z, (N, D P): dimension d P + p is element d of the
    vector at position p, the memory order of maps (D, H, W). ``encode`` returns logvar = -inf: a
    point mass. ``sample`` draws every code independently, with its frequency at its position in
    training; ``vae-fast sample --sampler pixelcnn`` fits a prior over codes.

    Args:
        encoder: (N, *input_shape) to D P values per sample.
        decoder: (N, D P) to the likelihood's parameters.
        quantizer: quantises D-vectors.
        latent_shape: (D, *places), where P is the product of places.
        momentum: the latest batch's weight in the running frequencies of the codes.
    """

    takes_objective = True

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: Quantizer,
        *,
        latent_shape: Sequence[int],
        momentum: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, latent_dim=math.prod(latent_shape), **options)
        if self.objective is not None and self.objective.deterministic is not None:
            raise ValueError(
                f"a VQVAE takes latent-diffusion as an objective, not {self.objective.name}"
            )
        self.quantizer, self.latent_shape = quantizer, tuple(latent_shape)
        self.places = math.prod(self.latent_shape[1:])
        even = {
            f"frequency_{c}": torch.full((self.places, size), 1 / size)
            for c, size in enumerate(quantizer.sizes)
            if size * self.places <= MOST_COUNTED
        }
        self.start_means(momentum, **even)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of one sample's codes, (*places, C)."""
        return (*self.latent_shape[1:], len(self.quantizer.sizes))

    def quantized(self, x: Tensor) -> Quantized:
        """Vectors, codes and loss at each position; rows are (sample, position), sample first."""
        h = self.encoder(self.network_input(x)).flatten(1)
        return self.quantizer(self._as_vectors(h))

    def codes(self, x: Tensor) -> Tensor:
        """The codes of x, (N, *places, C), int64."""
        return self.quantized(x).codes.view(x.shape[0], *self.code_shape)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """The likelihood's parameters for codes (N, *places, C)."""
        return self.decode(self.latent_of(codes))

    def latent_of(self, codes: Tensor) -> Tensor:
        """z, (N, latent_dim), for codes (N, *places, C)."""
        vectors = self.quantizer.lookup(codes.reshape(-1, codes.shape[-1]))
        return self._as_latent(vectors.to(device_and_dtype(self)[1]), codes.shape[0])

    def encode(self, x: Tensor) -> Posterior:
        return point_mass(self._as_latent(self.quantized(x).z, x.shape[0]))

    def own_loss(self, call: Call) -> LossOutput:
        """-log p(x | z) + beta * the quantiser's loss, summed over positions (equation 3).

        recon is in nats, and kl is the quantiser's loss. free_bits > 0 raises ValueError.
        """
        call.refuse(free_bits="bounds a KL, and codes have none")
        _, z, kl = call.draw()
        recon = call.nll_at(z)
        return call.output(recon + call.beta * kl, recon, kl)

    def draw(self, x: Tensor, *, noise_key: Tensor | None = None) -> Draw:
        """z, with the quantiser's loss of each sample as ``kl``. Training updates the codes'
        frequencies."""
        found = self.quantized(x)
        if self.training and torch.is_grad_enabled():
            self._follow(found.codes)
        z = self._as_latent(found.z, x.shape[0])
        return Draw(point_mass(z), z, found.loss.view(x.shape[0], self.places).sum(1))

    def diagnostics(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The perplexity of the batch's codes, averaged over C: the effective number in use."""
        codes = self.quantized(x).codes
        return {"code_perplexity": _perplexities(codes, self.quantizer.sizes).mean(0, keepdim=True)}

    def code_report(self, codes: Tensor) -> dict[str, float]:
        """The perplexity and the used fraction of a data set's codes (..., C), averaged over C."""
        codes, sizes = codes.flatten(0, -2), self.quantizer.sizes
        used = [len(column.unique()) / n for column, n in zip(codes.t(), sizes, strict=True)]
        return {
            "code_perplexity": float(_perplexities(codes, sizes).mean()),
            "codes_used": sum(used) / len(used),
        }

    def sample_prior(  # type: ignore[override]  # no condition
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """z (n, latent_dim) of independent codes, drawn in proportion to
        frequency^(1 / temperature)."""
        if n < 0 or temperature < 0:
            raise ValueError(f"n and temperature can't be negative, got {n} and {temperature}")
        device, drawn = device_and_dtype(self)[0], []
        for c, size in enumerate(self.quantizer.sizes):
            frequency = getattr(self, f"frequency_{c}", None)
            if frequency is None or n == 0:
                shape = (n, self.places)
                drawn.append(torch.randint(size, shape, generator=generator, device=device))
                continue
            scores = frequency.log() / max(temperature, 1e-6)
            p = scores.softmax(-1)
            found = torch.multinomial(p, n, replacement=True, generator=generator)
            drawn.append(found.t())
        return self.latent_of(torch.stack(drawn, -1).view(n, *self.code_shape))

    def _as_vectors(self, h: Tensor) -> Tensor:
        """(N, D P) to (N P, D)."""
        return h.unflatten(1, (self.latent_shape[0], self.places)).transpose(1, 2).flatten(0, 1)

    def _as_latent(self, vectors: Tensor, n: int) -> Tensor:
        return vectors.view(n, self.places, self.latent_shape[0]).transpose(1, 2).flatten(1)

    @torch.no_grad()
    def _follow(self, codes: Tensor) -> None:
        means: dict[str, Tensor] = {}
        place = torch.arange(len(codes), device=codes.device) % self.places
        for c, size in enumerate(self.quantizer.sizes):
            buffer = getattr(self, f"frequency_{c}", None)
            if buffer is None or len(codes) == 0:
                continue
            counts = count(place * size + codes[:, c], self.places * size, buffer.dtype)
            means[f"frequency_{c}"] = counts.view(self.places, size) * (self.places / len(codes))
        self.update_means(**means)


def _perplexities(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """The perplexity of each column of codes (M, C), (C,)."""
    if len(codes) == 0:
        return torch.ones(len(sizes))

    def used(c: Tensor, n: int) -> Tensor:
        return count(c, n) if n <= MOST_COUNTED else c.unique(return_counts=True)[1].float()

    return torch.stack([perplexity(used(c, n)) for c, n in zip(codes.t(), sizes, strict=True)])
