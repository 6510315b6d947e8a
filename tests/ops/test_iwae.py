"""iwae_bound against the K-sample bound spelt out in float64, value and every gradient."""

import math

import pytest
import torch

import vae_fast
from vae_fast.functional.importance import log_mean_exp


def problem(dtype=torch.float64, k=5, b=4, d=3, features=7):
    g = torch.Generator().manual_seed(k + b)
    mu = torch.randn(b, d, generator=g).to(dtype).requires_grad_()
    logvar = (0.5 * torch.randn(b, d, generator=g)).to(dtype).requires_grad_()
    decoder = torch.randn(d, features, generator=g).to(dtype).requires_grad_()
    target = torch.randint(0, 256, (b, features), generator=g, dtype=torch.uint8)
    eps = torch.randn(k, b, d, generator=g).to(dtype)
    return mu, logvar, decoder, target, eps


def spelt_out(mu, logvar, decoder, target, eps):
    """Log-weights (K, B), sample by sample, with torch.distributions."""
    normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
    q, p = normal(mu, torch.exp(0.5 * logvar)), normal(torch.zeros_like(mu), torch.ones_like(mu))
    x = target.to(mu.dtype) / 255.0
    rows = []
    for e in eps:
        z = mu + torch.exp(0.5 * logvar) * e
        likelihood = bernoulli(logits=z @ decoder, validate_args=False)
        rows.append(likelihood.log_prob(x).sum(1) + (p.log_prob(z) - q.log_prob(z)).sum(1))
    return torch.stack(rows)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bound_and_gradients(dtype):
    mu, logvar, decoder, target, eps = problem(dtype)
    z = mu + torch.exp(0.5 * logvar) * eps
    bound, log_weight = vae_fast.iwae_bound(z @ decoder, target, z, mu, logvar)
    grads = torch.autograd.grad(bound.sum(), (mu, logvar, decoder))

    exact = [t.detach().double().requires_grad_() for t in (mu, logvar, decoder)]
    expected_weight = spelt_out(*exact, target, eps.double())
    # Equation 14: the gradient of each log-weight times its normalised weight, a constant.
    normalised = expected_weight.detach().softmax(0)
    expected = torch.autograd.grad((normalised * expected_weight).sum(), exact)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close = {"rtol": tolerance, "atol": 10 * tolerance}
    torch.testing.assert_close(log_weight.double(), expected_weight.detach(), **close)
    exact_bound = expected_weight.detach().exp().mean(0).log()
    torch.testing.assert_close(bound.double(), exact_bound, **close)
    for grad, truth in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.double(), truth, **close)


@pytest.mark.usefixtures("backend")
def test_doubly_reparameterised_gradients():
    """Tucker et al. 2018, equation 8: sum_k w_k^2 (d log w_k / d z_k)(d z_k / d phi)."""
    mu, logvar, decoder, target, eps = problem()
    z = mu + torch.exp(0.5 * logvar) * eps
    bound, _ = vae_fast.iwae_bound(z @ decoder, target, z, mu, logvar, dreg=True)
    grads = torch.autograd.grad(bound.sum(), (mu, logvar, decoder))

    fixed = [t.detach().clone() for t in (mu, logvar)]
    samples = (fixed[0] + torch.exp(0.5 * fixed[1]) * eps).requires_grad_()
    weights = decoder.detach().clone().requires_grad_()
    x = target.double() / 255.0
    logits = samples @ weights
    log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"
    ).sum(2)
    log_ratio = 0.5 * (
        (samples - fixed[0]) ** 2 * torch.exp(-fixed[1]) + fixed[1] - samples**2
    ).sum(2)
    log_weight = log_p + log_ratio
    w = log_weight.detach().softmax(0)
    (slope,) = torch.autograd.grad(log_weight.sum(), samples, retain_graph=True)
    path = w.unsqueeze(-1) ** 2 * slope
    torch.testing.assert_close(grads[0], path.sum(0))
    torch.testing.assert_close(grads[1], (path * 0.5 * torch.exp(0.5 * fixed[1]) * eps).sum(0))
    # The decoder's gradient is the IWAE's own.
    (decoder_grad,) = torch.autograd.grad((w * log_weight).sum(), weights)
    torch.testing.assert_close(grads[2], decoder_grad)


def test_a_negligible_weight_makes_no_subnormal_gradient():
    log_weight = torch.tensor([[0.0, -80.0], [-30.0, -90.0], [-90.0, 0.0]], requires_grad=True)
    found = log_mean_exp(log_weight, 0)
    torch.testing.assert_close(found, log_weight.logsumexp(0) - math.log(3))
    (gradient,) = torch.autograd.grad(found.sum(), log_weight)
    # e^-30 has digits in float32 next to 1's rounding squared; e^-80 and less have none.
    assert gradient[1, 0] == pytest.approx(math.exp(-30), rel=1e-5)
    assert gradient.flatten()[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    infinite = torch.tensor([[-math.inf, math.nan], [-math.inf, 0.0]])
    assert log_mean_exp(infinite, 0)[0] == -math.inf and log_mean_exp(infinite, 0)[1].isnan()


def test_one_sample_is_an_elbo():
    mu, logvar, decoder, target, eps = problem(k=1)
    z = mu + torch.exp(0.5 * logvar) * eps
    bound, log_weight = vae_fast.iwae_bound(z @ decoder, target, z, mu, logvar)
    assert torch.equal(bound, log_weight[0])


def test_nothing_of_the_logits_size_but_their_gradient():
    """The largest tensors that forward and backward allocate are the logits' own gradient."""
    k, b, features = 20, 16, 784
    mu, logvar, _, target, eps = problem(torch.float32, k=k, b=b, d=4, features=features)
    z = mu + torch.exp(0.5 * logvar) * eps
    logits = torch.randn(k, b, features, requires_grad=True)
    with (
        vae_fast.set_backend("auto"),
        torch.profiler.profile(
            profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
        ) as profile,
    ):
        bound, _ = vae_fast.iwae_bound(logits, target, z, mu, logvar)
        bound.sum().backward()
    if vae_fast.info()["native cpu"] != "yes":
        pytest.skip("plain PyTorch makes temporaries")
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    # The gradient itself comes from memory that the kernels keep, which torch's profiler can't see.
    assert logits.grad.shape == logits.shape
    assert allocated < 0.2 * k * b * features * 4


def test_refusals():
    mu, logvar, decoder, target, eps = problem()
    z = mu + torch.exp(0.5 * logvar) * eps
    with pytest.raises(ValueError, match=r"\(5, 4, 2\)"):
        vae_fast.iwae_bound(z @ decoder, target, z[..., :2], mu, logvar)
    assert math.isfinite(vae_fast.iwae_bound(z @ decoder, target, z, mu, logvar)[0].sum().item())


def test_a_posterior_so_narrow_that_its_precision_overflows():
    mu, logvar = torch.randn(2, 3), torch.full((2, 3), -89.0)
    z = mu.expand(4, 2, 3)
    logits, target = torch.randn(4, 2, 5), torch.rand(2, 5)
    found, _ = vae_fast.iwae_bound(logits, target, z, mu, logvar)
    exact, _ = vae_fast.iwae_bound(*(t.double() for t in (logits, target, z, mu, logvar)))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_bound_without_gradient_leaves_z_alone():
    z = torch.randn(4, 2, 3, requires_grad=True)
    with torch.no_grad():
        vae_fast.iwae_bound(
            torch.randn(4, 2, 5), torch.rand(2, 5), z, *torch.randn(2, 2, 3), dreg=True
        )
    z.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
