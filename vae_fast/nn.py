"""Drop-in modules over ``vae_fast.functional``, and the tutorial's four names.

``Encoder``, ``Decoder``, ``VAE`` and ``loss_function`` have the signatures, parameter names,
initial weights and results of the usual introduction to VAEs in PyTorch (one hidden layer of ReLU,
784-400-20 for 28x28 images), so that a script which defines them can import them. For anything
beyond that, see ``vae_fast.models``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vae_fast import moments
from vae_fast.functional import bce_kl_loss, group_norm_silu, reparameterize
from vae_fast.functional.order import check_order
from vae_fast.types import REDUCTIONS, LossOutput, Reduction

__all__ = [
    "VAE",
    "BCEKLLoss",
    "Decoder",
    "Encoder",
    "GroupNormSiLU",
    "Reparameterize",
    "loss_function",
]


class Reparameterize(nn.Module):
    """z = mu + exp(logvar / 2) * eps, in training and in evaluation (Kingma & Welling 2014).

    Args:
        num_samples: K draws per element, stacked in a new first dimension; None for one draw
            without it.

    Shape: mu, logvar (..., D) to z (..., D), or (K, ..., D).
    """

    def __init__(self, num_samples: int | None = None) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, mu: Tensor, logvar: Tensor, noise_key: Tensor | None = None) -> Tensor:
        return reparameterize(mu, logvar, num_samples=self.num_samples, noise_key=noise_key)

    def extra_repr(self) -> str:
        return "" if self.num_samples is None else f"num_samples={self.num_samples}"


class BCEKLLoss(nn.Module):
    """The negative ELBO of a Bernoulli VAE in nats: BCE + beta * KL, in one op.

    ``forward(logits, target, mu, logvar) -> LossOutput(loss, recon, kl)``; see
    ``vae_fast.bce_kl_loss``. ``beta`` may be set between steps, as a warm-up does.

    Args:
        beta: weight of the KL (Higgins et al. 2017).
        reduction: "sum", "batchmean" (sum over features, mean over samples) or "none".
        from_logits: False if the decoder ends in a sigmoid.
    """

    def __init__(
        self,
        beta: float | Tensor = 1.0,
        reduction: Reduction = "sum",
        from_logits: bool = True,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
        self.beta = beta
        self.reduction = reduction
        self.from_logits = from_logits

    def forward(self, logits: Tensor, target: Tensor, mu: Tensor, logvar: Tensor) -> LossOutput:
        return bce_kl_loss(
            logits,
            target,
            mu,
            logvar,
            beta=self.beta,
            reduction=self.reduction,
            from_logits=self.from_logits,
        )

    def extra_repr(self) -> str:
        return f"beta={self.beta}, reduction={self.reduction!r}, from_logits={self.from_logits}"


class GroupNormSiLU(nn.GroupNorm):
    """nn.GroupNorm and nn.SiLU in one pass.

    ``GroupNormSiLU(num_groups, num_channels)`` replaces
    ``nn.Sequential(nn.GroupNorm(num_groups, num_channels), nn.SiLU())``.

    Backward keeps the input and the groups' statistics; the two modules keep the normalised input as
    well. Arguments, parameters and their names are nn.GroupNorm's. The output has the input's dtype,
    under autocast too; see ``vae_fast.group_norm_silu``.

    Shape: (N, C, ...) to (N, C, ...), contiguous or channels-last.
    """

    def forward(self, input: Tensor) -> Tensor:
        return group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps)


# --- the tutorial's names ------------------------------------------------------------------------


class Encoder(nn.Module):
    """(N, input_dim) to the posterior's (mu, logvar), each (N, latent_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        # In this order, so that a seed gives the same weights as in the script's own classes.
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.fc_mu = nn.Linear(hidden_dim, latent_dim)
        self.fc_logvar = nn.Linear(hidden_dim, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.fc1(x))
        return self.fc_mu(h), self.fc_logvar(h)


class Decoder(nn.Module):
    """(N, latent_dim) to x_hat (N, output_dim), probabilities in [0, 1]."""

    def __init__(self, latent_dim: int, hidden_dim: int, output_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(latent_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, z: Tensor) -> Tensor:
        logits = self.fc2(torch.relu(self.fc1(z)))
        if torch.is_autocast_enabled(logits.device.type):
            # A bfloat16 probability above 0.998 is 1, and its loss the clamp's 100 nats.
            logits = logits.float()
        return torch.sigmoid(logits)


# pytorch/examples' VAE is the same network in one class, under other names.
_FLAT_NAMES = {
    "fc1": "encoder.fc1",
    "fc21": "encoder.fc_mu",
    "fc22": "encoder.fc_logvar",
    "fc3": "decoder.fc1",
    "fc4": "decoder.fc2",
}


class VAE(nn.Module):
    """``forward(x) -> (x_hat, mu, logvar)``, with z sampled in training and in evaluation.

    x is (N, input_dim), or of any shape (N, ...) with as many elements a sample, such as
    (N, 1, 28, 28); x_hat is (N, input_dim). Also loads a state_dict of pytorch/examples' VAE (fc1, fc21, fc22, fc3, fc4).

    Subnormal moments of its parameters, on which a CPU computes a hundred times slower, become zero every
    32 steps of any of torch's optimizers with an eps of at least 1e-15, beside which they vanish. The
    logger "vae_fast" says so once, at level INFO.
    """

    def __init__(self, input_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder = Encoder(input_dim, hidden_dim, latent_dim)
        self.decoder = Decoder(latent_dim, hidden_dim, input_dim)
        self.register_load_state_dict_pre_hook(_rename_flat_names)  # type: ignore[no-untyped-call]
        moments.watch(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        moments.watch(self)  # a copy's moments too

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encoder(x.flatten(1) if x.dim() > 2 else x)
        # torch.randn's noise instead of the kernels', so that a seed gives the script's own draws:
        # on 10,000 images, runs with different noise differ by about a nat in the first epoch. The
        # kernel would save too little here to be measured beside the linear layers.
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu))
        return self.decoder(z), mu, logvar


def _rename_flat_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    for old, new in _FLAT_NAMES.items():
        for kind in ("weight", "bias"):
            if f"{prefix}{old}.{kind}" in state_dict:
                state_dict[f"{prefix}{new}.{kind}"] = state_dict.pop(f"{prefix}{old}.{kind}")


def loss_function(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """BCE(x_hat, x) + KL(N(mu, exp(logvar)) || N(0, 1)), summed over everything, in nats.

    x_hat holds probabilities; the BCE has ``F.binary_cross_entropy``'s clamps. x may be floating
    in [0, 1], uint8 (0..255 stands for x / 255) or bool. For pytorch/examples' order, (x_hat, x, ...),
    there is ``vae_fast.compat.pytorch_examples``.

    Raises:
        ValueError, TypeError: x and x_hat look swapped, or don't fit.
    """
    check_order(
        "x_hat", x_hat, "x", x, "loss_function(x, x_hat, mu, logvar)",
        ", or take pytorch/examples' order, (x_hat, x, mu, logvar), from "
        "vae_fast.compat.pytorch_examples",
    )  # fmt: skip
    return bce_kl_loss(x_hat, x, mu, logvar, reduction="sum", from_logits=False).loss
