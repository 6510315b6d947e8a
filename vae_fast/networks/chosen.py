"""The encoder and the decoder of a model, by the options that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vae_fast.networks import make_decoder, make_encoder

NETWORKS = ("network", "network_options", "decoder_network", "decoder_options")


@dataclass
class NetworkChoice:
    """``network`` and its options are the encoder's, and the decoder's too, unless it has its own."""

    network: str = "mlp"
    network_options: Mapping[str, Any] | None = None
    decoder_network: str | None = None
    decoder_options: Mapping[str, Any] | None = None

    def encoder(self, input_shape: Sequence[int], features: int) -> nn.Module:
        return make_encoder(self.network, input_shape, features, **(self.network_options or {}))

    def decoder(self, features: int, output_shape: Sequence[int]) -> nn.Module:
        kind, options = self.decoder_network or self.network, self.decoder_options
        if options is None:
            options = (self.network_options or {}) if kind == self.network else {}
        return make_decoder(kind, features, output_shape, **options)
