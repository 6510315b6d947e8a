"""The variational recurrent autoencoder (Fabius & van Amersfoort 2014), for sequences.

Images are sequences of rows. Word dropout (Bowman et al. 2016) keeps the decoder from relying on
the previous step and ignoring z.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from vae_fast.functional import reparameterize
from vae_fast.models.call import Call, streams_of
from vae_fast.models.conditions import Condition
from vae_fast.models.divergence import free_bits_kl
from vae_fast.models.gaussian import Posterior, split_gaussian
from vae_fast.models.iwae import ImportanceWeighted
from vae_fast.models.vae import BetaVAE
from vae_fast.networks import device_and_dtype
from vae_fast.networks.recurrent import RecurrentDecoder, RecurrentEncoder
from vae_fast.networks.scaling import scaled
from vae_fast.networks.sequences import from_steps, to_steps
from vae_fast.reference import reduce
from vae_fast.types import LossOutput

WORD_DROPOUT = 3  # its noise stream


class VRAE(BetaVAE):
    """q(z | x_1..x_T), p(z) = N(0, 1), p(x | z) = prod_t p(x_t | x_<t, z).

    x is (N, T, F) real values, (N, T) tokens or real values, or images (N, C, T, W), row by row.
    T may differ between batches, except for images. Within a batch, shorter sequences are padded at
    the end; ``lengths``, (N,), gives their lengths, or ``padding`` marks the end.

    Args:
        encoder, decoder: recurrent networks. The decoder takes latent_dim + condition.features
            latent values, and outputs P * F parameters for each step.
        head: the encoder's and the condition's features to (N, 2 * latent_dim).
        input_shape: (T, F), (T,) or (C, T, W); ``sample`` writes T steps by default.
        condition: maps y to features; None for an unconditional model.
        word_dropout: the probability that training hides the previous step from the decoder. At 1
            it is always hidden, and p(x | z) = prod_t p(x_t | z).
        padding: the token, or NaN, that pads short sequences; None if there are none.
    """

    decoder: Any  # RecurrentDecoder

    def __init__(
        self,
        encoder: RecurrentEncoder,
        decoder: RecurrentDecoder,
        head: nn.Module,
        *,
        condition: Condition | None = None,
        word_dropout: float = 0.3,
        padding: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, **options)
        if not 0.0 <= word_dropout <= 1.0:
            raise ValueError(f"word_dropout must be between 0 and 1, got {word_dropout}")
        self.head = head
        self.condition = condition
        self.uses_labels = condition is not None
        self.word_dropout = word_dropout
        self.padding = padding

    def condition_from(self, x: Tensor, y: Tensor | None) -> tuple[Any, ...]:
        return () if self.condition is None else (y,)

    def encode(self, x: Tensor, *condition: Tensor, lengths: Tensor | None = None) -> Posterior:
        return self._posterior(*self.to_steps(x, lengths), *condition)

    def decode(self, z: Tensor, *condition: Tensor, length: int | None = None) -> Tensor:
        """The likelihood's parameters of ``length`` steps generated from z (..., latent_dim).

        Each step's mean, for tokens the most probable one, is the input of the next step.
        """
        flat = self.check_latent(z).reshape(-1, self.latent_dim)
        params = self._laid_out(self._write(self._with_condition(flat, *condition), length)[0])
        return params.reshape(*z.shape[:-1], *params.shape[1:])

    def own_loss(self, call: Call, lengths: Tensor | None = None) -> LossOutput:
        """-sum_t log p(x_t | x_<t, z) + beta * KL(q(z | x) || p(z)), in nats, without padding."""
        steps, lengths = self.to_steps(call.x, lengths)
        q = self._posterior(steps, lengths, *call.condition)
        _, z, kl = self.drawn_from(q, None, call.noise_key)
        options = self.nll_options(call.noise_key)
        recon = self._nll(steps, lengths, z, *call.condition, **options)
        if call.free_bits > 0:
            self._refuse_free_bits(call)
            recon = reduce(recon.unsqueeze(1), call.reduction)
            kl = free_bits_kl(q, None, call.free_bits, reduction=call.reduction)
            return LossOutput(recon + call.beta * kl, recon, kl)
        return call.output(recon + call.beta * kl, recon, kl)

    def nll_of_draws(
        self,
        x: Tensor,
        z: Tensor,
        *condition: Tensor,
        lengths: Tensor | None = None,
        noise_key: Tensor | None = None,
    ) -> Tensor:
        steps = self.to_steps(x, lengths)
        keys = [None if noise_key is None else streams_of(noise_key, k) for k in range(len(z))]
        each = zip(z, keys, strict=True)
        return torch.stack([self._nll(*steps, z_k, *condition, noise_key=key) for z_k, key in each])

    def nll_at(
        self,
        x: Tensor,
        z: Tensor,
        *condition: Tensor,
        lengths: Tensor | None = None,
        noise_key: Tensor | None = None,
    ) -> Tensor:
        """-log p(x | z) of each sample, (N,), in nats; each step given the true previous ones.

        ``noise_key`` fixes which of them training hides."""
        return self._nll(*self.to_steps(x, lengths), z, *condition, noise_key=noise_key)

    def nll_options(self, noise_key: Tensor | None) -> dict[str, Any]:
        return {} if noise_key is None else {"noise_key": streams_of(noise_key, WORD_DROPOUT)}

    def _hidden(self, steps: Tensor, noise_key: Tensor | None) -> Tensor | None:
        """Which previous steps word dropout hides, (N, T) bool, or None if it hides none."""
        if self.word_dropout == 1.0:
            return steps.new_ones(steps.shape[:2], dtype=torch.bool)
        if not self.training or self.word_dropout == 0:
            return None
        zeros = steps.new_zeros(steps.shape[:2], dtype=torch.float32)
        below = NormalDist().inv_cdf(self.word_dropout)
        return reparameterize(zeros, zeros, noise_key=noise_key) < below

    def squared_error(self, x: Tensor, *condition: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The mean squared error of each sample, (N,), without padding."""
        steps, lengths = self.to_steps(x, lengths)
        made = self.reconstruct(x, *condition)
        made = made if made.is_floating_point() else made.to(x.dtype)  # classes of 8-bit pixels
        dtype = device_and_dtype(self)[1]
        difference = scaled(steps, dtype) - scaled(self.to_steps(made, lengths)[0], dtype)
        return difference.square().sum((1, 2)) / (lengths * steps.shape[2]).clamp_min(1)

    def values_per_sample(self, x: Tensor) -> float:
        """The mean number of values in a sample of x, without padding."""
        steps, lengths = self.to_steps(x)
        return float(lengths.double().mean()) * steps.shape[2]

    def reconstruct(self, x: Tensor, *condition: Tensor) -> Tensor:
        """E[x | z] at the posterior's mean, with as many steps as x has."""
        z = self.features(x, *condition)
        length = x.shape[2] if len(self.input_shape) == 3 else x.shape[1]
        return self.likelihood.mean(self.decode(z, *condition, length=length))

    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        length: int | None = None,
        temperature: float = 1.0,
        draw: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n sequences for z ~ N(0, temperature^2).

        ``draw`` samples each step from its distribution, as is usual for text, instead of taking
        its mean.
        """
        condition: tuple[Any, ...] = ()
        if self.condition is not None:
            device = device_and_dtype(self)[0]
            condition = (self.condition.default(n, device) if y is None else y,)
        z = self._with_condition(self.sample_prior(n, temperature, generator), *condition)
        params, steps = self._write(z, length, draw=draw, generator=generator)
        if not draw:
            return self.likelihood.mean(self._laid_out(params))
        return from_steps(steps, self.input_shape)

    def to_steps(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x as steps (N, T, F) with zeros for padding, and the lengths (N,)."""
        return to_steps(x, self.input_shape, self.padding, lengths)

    def _laid_out(self, params: Tensor) -> Tensor:
        """The steps' parameters (N, T, P * F) in the likelihood's layout for x."""
        return from_steps(params, self.input_shape, self.likelihood.parameters_per_element)

    def _with_condition(self, features: Tensor, *condition: Tensor) -> Tensor:
        if self.condition is None:
            return features
        seen = self.condition(*condition, device_and_dtype(self)[1])
        return torch.cat([features, seen], dim=1)

    def _posterior(self, steps: Tensor, lengths: Tensor, *condition: Tensor) -> Posterior:
        h = self.encoder(steps, lengths, device_and_dtype(self)[1])
        return split_gaussian(self.head(self._with_condition(h, *condition)), self.context)

    def _nll(
        self,
        steps: Tensor,
        lengths: Tensor,
        z: Tensor,
        *condition: Tensor,
        noise_key: Tensor | None = None,
    ) -> Tensor:
        """-log p(x | z), (N,), each step given the true previous steps, as far as not hidden."""
        z = self._with_condition(z, *condition)
        seen = self.decoder.step_input(steps, z.dtype)
        previous = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], dim=1)
        hidden = self._hidden(steps, noise_key)
        if hidden is not None:
            previous = previous.masked_fill(hidden.unsqueeze(2), 0)
        params, _ = self.decoder(z, previous, self.decoder.start(z))
        by_step = self.likelihood.nll(
            params.flatten(0, 1), steps.flatten(0, 1), reduction="none"
        ).view(steps.shape[:2])
        inside = torch.arange(steps.shape[1], device=z.device) < lengths.unsqueeze(1)
        return torch.where(inside, by_step, 0.0).sum(1)

    def _write(
        self,
        z: Tensor,
        length: int | None,
        *,
        draw: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Parameters (N, T, P * F) and values (N, T, F) of T steps, each the next one's input."""
        images = len(self.input_shape) == 3
        length = self.input_shape[1 if images else 0] if length is None else length
        previous = z.new_zeros(z.shape[0], 1, self.decoder.step_input.features)
        state = self.decoder.start(z)
        all_params, all_values = [], []
        for _ in range(length):
            params, state = self.decoder(z, previous, state)
            params = params.squeeze(1)
            if draw:
                value = self.likelihood.sample(params, generator=generator)
            else:
                value = self.likelihood.mean(params)
            if self.word_dropout < 1.0:
                previous = self.decoder.step_input(value.unsqueeze(1), z.dtype)
            all_params.append(params)
            all_values.append(value)
        return torch.stack(all_params, 1), torch.stack(all_values, 1)


class RecurrentIWAE(ImportanceWeighted, VRAE):  # type: ignore[misc]  # the mixin goes first
    """A VRAE trained on the K-sample bound."""
