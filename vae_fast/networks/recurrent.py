"""Recurrent networks for sequence models: a GRU encoder and a GRU decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_fast.backend import is_transforming
from vae_fast.reference import as_probability


def run_gru(gru: nn.GRU, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``gru(x, state)`` for x (N, T, features): (N, T, hidden) and the state (layers, N, hidden).

    Under ``torch.func`` transforms it runs step by step: torch's GRU does not support ``vmap``.
    """
    if not is_transforming():
        return gru(x, state)
    found = []
    for layer in range(gru.num_layers):
        of_x, of_h, bias_x, bias_h = (
            getattr(gru, f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = x.new_zeros(len(x), gru.hidden_size) if state is None else state[layer]
        outputs = []
        for given in (x @ of_x.t() + bias_x).unbind(1):
            reset, update, new = given.chunk(3, 1)
            of_reset, of_update, of_new = (h @ of_h.t() + bias_h).chunk(3, 1)
            keep = torch.sigmoid(update + of_update)
            new = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
            h = (1 - keep) * new + keep * h
            outputs.append(h)
        x = torch.stack(outputs, 1)
        found.append(h)
    return x, torch.stack(found)


class StepInput(nn.Module):
    """The GRU's input at one step: ``size`` real values, or the embeddings of ``size`` tokens."""

    def __init__(self, size: int, num_tokens: int | None = None, embedding: int = 64) -> None:
        super().__init__()
        self.features = size if num_tokens is None else size * embedding
        self.embedding = None if num_tokens is None else nn.Embedding(num_tokens, embedding)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, T, size) to (N, T, features)."""
        if self.embedding is None:
            return as_probability(x, dtype)
        return self.embedding(x.long()).flatten(2)


class RecurrentEncoder(nn.Module):
    """(N, T, F) and lengths (N,) to (N, hidden): the GRU's state after each sequence's last step.

    The GRU reads forwards only, so padding at the end has no effect.
    """

    def __init__(self, step_input: StepInput, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.step_input = step_input
        self.gru = nn.GRU(step_input.features, hidden, layers, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        steps = self.step_input(x, dtype)
        if torch.jit.is_scripting():  # TorchScript cannot compile the other branch
            states, _ = self.gru(steps)
        else:
            states, _ = run_gru(self.gru, steps)
        last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1) * (lengths > 0).unsqueeze(1)


class RecurrentDecoder(nn.Module):
    """z (N, D) and the previous steps to the likelihood's parameters of each step.

    z sets the first state and is an input of every step.
    """

    def __init__(
        self,
        step_input: StepInput,
        latent_features: int,
        hidden: int,
        outputs: int,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.step_input = step_input
        self.layers = layers
        self.first_state = nn.Linear(latent_features, layers * hidden)
        self.gru = nn.GRU(step_input.features + latent_features, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, outputs)

    def start(self, z: Tensor) -> Tensor:
        """The first state, (layers, N, hidden)."""
        state = torch.tanh(self.first_state(z))
        return state.unflatten(1, (self.layers, self.gru.hidden_size)).transpose(0, 1).contiguous()

    def forward(self, z: Tensor, previous: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs (N, T, outputs) and the last state. ``previous``, (N, T, features), has the
        step before each of the T steps."""
        inputs = torch.cat([previous, z.unsqueeze(1).expand(-1, previous.shape[1], -1)], dim=2)
        if torch.jit.is_scripting():
            states, state = self.gru(inputs, state)
        else:
            states, state = run_gru(self.gru, inputs, state)
        return self.output(states), state
