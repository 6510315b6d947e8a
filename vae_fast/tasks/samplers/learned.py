"""Densities over codes that are trained: a flow, a second VAE, and a PixelCNN over numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_fast.functional.checks import check_count
from vae_fast.models.priors import FlowPrior
from vae_fast.tasks.samplers.pixelcnn import PixelCNN


class Trained(nn.Module):
    """A sampler with a network, which ``fit`` trains by ``nll``. ``steps``, ``batch``, ``lr``: of Adam with
    a cosine to 0 on batches of codes drawn at random."""

    def __init__(self, steps: int, batch: int, lr: float) -> None:
        super().__init__()
        check_count("steps", steps)
        check_count("batch", batch)
        self.steps, self.batch, self.lr = steps, batch, lr

    def nll(self, codes: Tensor) -> Tensor:
        """-log p(codes) or an upper bound of it, in nats: the batch's mean, 0-d."""
        raise NotImplementedError(f"{type(self).__name__} must implement nll(codes)")

    def prepare(self, codes: Tensor) -> Tensor:
        """Codes as ``nll`` takes them."""
        return codes

    def fit(self, codes: Tensor) -> Trained:
        """Train on codes (N, ...). ``losses`` keeps the loss of each step."""
        data = self.prepare(codes)
        self.train()
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        self.losses = []
        with torch.enable_grad():
            for _ in range(self.steps):
                size = (min(self.batch, len(data)),)
                loss = self.nll(data[torch.randint(len(data), size, device=data.device)])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), 10.0)
                optimizer.step()
                schedule.step()
                self.losses.append(loss.item())
        return self.eval()


class OfVectors(Trained):
    """A sampler of codes (N, D), which it standardizes to mean 0 and deviation 1."""

    def __init__(self, dim: int, steps: int, batch: int, lr: float) -> None:
        super().__init__(steps, batch, lr)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def prepare(self, codes: Tensor) -> Tensor:
        z = codes.float()
        self.mean, self.deviation = z.mean(0), z.std(0, correction=0).clamp_min(1e-6)
        return (z - self.mean) / self.deviation

    def back(self, z: Tensor) -> Tensor:
        return z * self.deviation + self.mean


class FlowSampler(OfVectors):
    """A flow fitted to codes by maximum likelihood (Papamakarios et al. 2017).

    Args:
        dim: D. kind: maf, iaf or realnvp. hidden: of each of the flow's networks.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: str = "maf",
        steps: int = 2000,
        batch: int = 256,
        lr: float = 1e-3,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__(dim, steps, batch, lr)
        self.prior = FlowPrior(dim, kind, steps=5, hidden=hidden)

    def nll(self, codes: Tensor) -> Tensor:
        return -self.prior.log_density(codes).mean()

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        return self.back(self.prior.sample(temperature * torch.randn_like(self.mean.expand(n, -1))))


class SecondStage(OfVectors):
    """A second VAE, of codes drawn from the posterior (Dai & Wipf 2019).

    Args:
        dim: D, also of the second z. hidden: of its networks.
    """

    def __init__(
        self, dim: int, *, steps: int = 3000, batch: int = 256, lr: float = 3e-3, hidden: int = 256
    ) -> None:
        from vae_fast.models import build

        super().__init__(dim, steps, batch, lr)
        self.model = build(
            "vae",
            (dim,),
            latent_dim=dim,
            network_options={"hidden": [hidden, hidden]},
            likelihood="gaussian",
            likelihood_options={"variance": "shared"},
        )

    def nll(self, codes: Tensor) -> Tensor:
        return self.model.loss(codes).loss

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        params = self.model.decode(self.model.sample_prior(n, temperature))
        return self.back(self.model.likelihood.sample(params))


class CodeSampler(Trained):
    """A PixelCNN over a VQ-VAE's codes (van den Oord et al. 2017, section 4.2).

    Args:
        shape: of a sample's codes, (*places, C). sizes: how many values each of the C can take.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sizes: Sequence[int],
        *,
        steps: int = 2000,
        batch: int = 64,
        lr: float = 1e-3,
        channels: int = 64,
        layers: int = 6,
    ) -> None:
        super().__init__(steps, batch, lr)
        self.shape = tuple(shape)
        grid = self.shape[:2] if len(self.shape) == 3 else (1, math.prod(self.shape[:-1]))
        self.network = PixelCNN(sizes, grid, channels=channels, layers=layers)

    def prepare(self, codes: Tensor) -> Tensor:
        return codes.view(-1, *self.network.grid, self.shape[-1])

    def nll(self, codes: Tensor) -> Tensor:
        return self.network.nll(codes).mean()

    def draw(self, n: int, temperature: float = 1.0) -> Tensor:
        """Codes (n, *places, C)."""
        return self.network.sample(n, temperature).view(n, *self.shape)
