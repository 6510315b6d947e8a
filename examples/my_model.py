"""A model of your own, in a file of your own, with networks of your own.

    PYTHONPATH=examples vae-fast train --model my_model:BrightnessVAE --data fashion10k

A model needs the methods encode, decode, loss, reconstruct and sample. The short way is to inherit
them from vae_fast.models.BetaVAE and to override what differs.
"""

import math

import torch
from torch import nn

from vae_fast.models import BetaVAE


class BrightnessVAE(BetaVAE):
    """An image as a shape times a brightness: the decoder's last step multiplies the two."""

    def __init__(self, input_shape, latent_dim=10, hidden=300):
        pixels = math.prod(input_shape)
        encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, hidden), nn.ELU(), nn.Linear(hidden, 2 * latent_dim)
        )
        decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ELU(), nn.Linear(hidden, pixels))
        super().__init__(encoder, decoder, input_shape=input_shape, latent_dim=latent_dim)
        self.brightness = nn.Linear(latent_dim, 1)

    def decode(self, z):
        shape = torch.sigmoid(self.decoder(z)) * torch.sigmoid(self.brightness(z))
        return torch.logit(shape, eps=1e-6).unflatten(-1, self.input_shape)  # back to logits
