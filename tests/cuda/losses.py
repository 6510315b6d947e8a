"""Every op once, on any device: what the tests of streams, graphs and load compare."""

from __future__ import annotations

import torch

import vae_fast


def inputs(
    device: torch.device, rows: int = 301, image: int = 1217, latent: int = 403
) -> list[torch.Tensor]:
    """Logits, uint8 target, mu, logvar; the same values on every device."""
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(rows, image, generator=generator)
    target = torch.randint(256, (rows, image), generator=generator, dtype=torch.uint8)
    mu, logvar = (torch.randn(rows, latent, generator=generator) for _ in range(2))
    return [t.to(device) for t in (x, target, mu, logvar)]


def everything(
    tensors: list[torch.Tensor], key: torch.Tensor, reduction: str = "sum"
) -> list[torch.Tensor]:
    """Values and gradients of every op."""
    x, target, mu, logvar = tensors
    x, mu, logvar = (t.detach().requires_grad_() for t in (x, mu, logvar))
    z, kl = vae_fast.sample_and_kl(mu, logvar, noise_key=key, reduction=reduction)
    draws = vae_fast.reparameterize(mu, logvar, num_samples=3, noise_key=key)
    nll = vae_fast.bernoulli_nll(x, target, reduction=reduction)
    loss = vae_fast.bce_kl_loss(x, target, mu, logvar, beta=0.5, reduction=reduction)
    prior = vae_fast.gaussian_kl(mu, logvar, -mu, -logvar, reduction=reduction)
    results = [z, kl, draws, nll, *loss, prior]
    total = sum((i + 1) * r.sum() for i, r in enumerate(results))
    return [*(r.detach() for r in results), *torch.autograd.grad(total, (x, mu, logvar))]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
