"""vae_fast.distributions.Normal is torch's, with the kernels' noise and KL."""

import torch
from torch.distributions import Independent, kl_divergence
from torch.distributions import Normal as TorchNormal

from vae_fast.distributions import Normal


def test_kl_and_its_gradients_are_torchs(backend):
    loc, scale = torch.randn(4, 3, requires_grad=True), torch.rand(3).add(0.2).requires_grad_()
    prior = torch.rand(4, 1).add(0.5).requires_grad_()
    expected = kl_divergence(TorchNormal(loc, scale), TorchNormal(1.0, prior))
    grads = torch.autograd.grad(expected.sum(), (loc, scale, prior))
    for p in (TorchNormal(1.0, prior), Normal(1.0, prior)):
        kl = kl_divergence(Normal(loc, scale), p)
        torch.testing.assert_close(kl, expected)
        for a, b in zip(torch.autograd.grad(kl.sum(), (loc, scale, prior)), grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    whole = kl_divergence(
        Independent(Normal(loc, scale), 1), Independent(TorchNormal(1.0, prior), 1)
    )
    torch.testing.assert_close(whole, expected.sum(1))


def test_draws(backend):
    loc, scale = torch.randn(3, requires_grad=True), torch.rand(3).add(0.2).requires_grad_()
    q = Normal(loc, scale)
    torch.manual_seed(1)
    z = q.rsample((20000, 2))
    torch.manual_seed(1)
    assert torch.equal(q.sample((20000, 2)), z)
    assert z.shape == (20000, 2, 3)
    torch.testing.assert_close(z.mean((0, 1)), loc, rtol=0, atol=0.03)
    torch.testing.assert_close(z.std((0, 1)), scale, rtol=0, atol=0.03)
    eps = ((z - loc) / scale).detach()
    for a, b in zip(
        torch.autograd.grad(z.sum(), (loc, scale)), (torch.full((3,), 40000.0), eps.sum((0, 1))),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0.1)
    assert q.rsample().shape == (3,)
    assert q.rsample((0, 2)).shape == (0, 2, 3)
    assert not q.sample().requires_grad
    assert isinstance(q.expand((2, 3)), Normal)
    torch.testing.assert_close(q.log_prob(loc), TorchNormal(loc, scale).log_prob(loc))
