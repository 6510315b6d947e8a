"""``loss_function`` as the VAE script of pytorch/examples calls it.

    from vae_fast.compat.pytorch_examples import loss_function

    loss = loss_function(recon_batch, data, mu, logvar)

The script's argument order is the reverse of ``vae_fast.loss_function``'s, and its loss flattens
the data.
"""

from __future__ import annotations

from torch import Tensor

from vae_fast.functional import bce_kl_loss
from vae_fast.functional.order import check_order


def loss_function(recon_x: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """BCE(recon_x, x) + KL(N(mu, exp(logvar)) || N(0, 1)), summed over everything, in nats.

    Args:
        recon_x: (N, D), probabilities.
        x: (N, D) or any shape of as many elements, such as (N, 1, 28, 28); floating in [0, 1],
            uint8 (x stands for x / 255) or bool.
        mu, logvar: (N, L).

    Raises:
        ValueError, TypeError: recon_x and x look swapped, or don't fit.
    """
    check_order("recon_x", recon_x, "x", x, "loss_function(recon_x, x, mu, logvar)")
    if x.numel() != recon_x.numel():
        raise ValueError(
            f"x has shape {tuple(x.shape)}, recon_x {tuple(recon_x.shape)}: x must have as many "
            "elements"
        )
    return bce_kl_loss(recon_x, x.reshape(recon_x.shape), mu, logvar, from_logits=False).loss
