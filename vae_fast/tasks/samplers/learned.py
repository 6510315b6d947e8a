"""Trained densities over codes: a flow, a second VAE, and a PixelCNN over code numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_fast.models.priors import FlowPrior
from vae_fast.tasks.samplers.pixelcnn import PixelCNN


def trained(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    data: Tensor,
    steps: int,
    batch: int,
    lr: float,
) -> list[float]:
    """Train with Adam and a cosine decay to 0 on random batches of rows; returns the losses."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    optimizer = torch.optim.Adam(module.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(data), (min(batch, len(data)),), device=data.device)
            value = loss(data[rows])
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
    return losses


class Scaled:
    """Scale codes to mean 0 and standard deviation 1, and back."""

    def __init__(self, z: Tensor) -> None:
        self.mean, self.deviation = z.mean(0), z.std(0, correction=0).clamp_min(1e-6)

    def to(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.deviation

    def back(self, z: Tensor) -> Tensor:
        return z * self.deviation + self.mean


class FlowSampler:
    """A flow fitted to codes by maximum likelihood (Papamakarios et al. 2017).

    Args:
        kind: maf, iaf or realnvp.
    """

    def __init__(
        self, z: Tensor, *, kind: str = "maf", steps: int = 2000, batch: int = 256, lr: float = 1e-3
    ) -> None:
        z = z.float()
        self.scale = Scaled(z)
        self.prior = FlowPrior(z.shape[1], kind, steps=5, hidden=(128, 128)).to(z.device)

        def loss(part: Tensor) -> Tensor:
            return -self.prior.log_density(part).mean()

        self.losses = trained(self.prior, loss, self.scale.to(z), steps, batch, lr)

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        dim, device = len(self.scale.mean), self.scale.mean.device
        eps = temperature * torch.randn(n, dim, device=device)
        return self.scale.back(self.prior.sample(eps))


class SecondStage:
    """A second VAE, trained on codes drawn from the posterior (Dai & Wipf 2019)."""

    def __init__(
        self, z: Tensor, *, steps: int = 3000, batch: int = 256, lr: float = 3e-3, hidden: int = 256
    ) -> None:
        from vae_fast.models import build

        z = z.float()
        self.scale, dim = Scaled(z), z.shape[1]
        self.model = build(
            "vae",
            (dim,),
            latent_dim=dim,
            network_options={"hidden": [hidden, hidden]},
            likelihood="gaussian",
            likelihood_options={"variance": "shared"},
        )
        self.model.to(z.device).train()
        self.losses = trained(
            self.model, lambda part: self.model.loss(part).loss, self.scale.to(z), steps, batch, lr
        )
        self.model.eval()

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        params = self.model.decode(self.model.sample_prior(n, temperature))
        return self.scale.back(self.model.likelihood.sample(params))


class CodeSampler:
    """A PixelCNN over a VQ-VAE's codes (van den Oord et al. 2017, section 4.2)."""

    def __init__(
        self,
        codes: Tensor,
        sizes: tuple[int, ...],
        *,
        steps: int = 2000,
        batch: int = 64,
        lr: float = 1e-3,
        channels: int = 64,
        layers: int = 6,
    ) -> None:
        grid = codes if codes.dim() == 4 else codes.unsqueeze(1)
        self.shape = tuple(codes.shape[1:])
        self.network = PixelCNN(
            sizes, (grid.shape[1], grid.shape[2]), channels=channels, layers=layers
        )
        self.network.to(codes.device)

        def loss(part: Tensor) -> Tensor:
            return self.network.nll(part).mean()

        self.losses = trained(self.network, loss, grid, steps, batch, lr)

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """Codes (n, *places, C)."""
        return self.network.sample(n, temperature).view(n, *self.shape)
