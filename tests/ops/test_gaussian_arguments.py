"""The other ways to say a Gaussian, its noise and its reductions: each equals the usual way."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import vae_fast
from vae_fast import gaussian_kl, reparameterize, sample_and_kl, split_moments
from vae_fast.noise import new_key


def gradients(value, *inputs):
    upstream = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return torch.autograd.grad(value, inputs, upstream, retain_graph=True)


def near(a, b):
    torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_noise_by_key_generator_or_eps(backend):
    mu, logvar = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    key = new_key(generator=torch.Generator().manual_seed(4))
    for count in (None, 2):
        z = reparameterize(mu, logvar, noise_key=key, num_samples=count)
        again, eps = reparameterize(mu, logvar, noise_key=key, num_samples=count, return_eps=True)
        near(again, z)
        near(eps, (z - mu) * torch.exp(-0.5 * logvar))
        assert not eps.requires_grad
        given = reparameterize(mu, logvar, eps=eps, num_samples=count)
        drawn = reparameterize(
            mu, logvar, generator=torch.Generator().manual_seed(4), num_samples=count
        )
        for other in (again, given, drawn):
            near(other, z)
            for a, b in zip(gradients(other, mu, logvar), gradients(z, mu, logvar), strict=True):
                near(a, b)
    z, kl, eps = sample_and_kl(mu, logvar, noise_key=key, return_eps=True)
    near(z, sample_and_kl(mu, logvar, noise_key=key)[0])
    near(sample_and_kl(mu, logvar, generator=torch.Generator().manual_seed(4))[0], z)
    near(sample_and_kl(mu, logvar, eps=eps)[0], z)
    near(kl, gaussian_kl(mu, logvar))
    torch.manual_seed(1)
    first = reparameterize(mu, logvar, return_eps=True)[1]
    assert not torch.equal(reparameterize(mu, logvar, return_eps=True)[1], first)


def test_a_scale_in_place_of_logvar(backend):
    mu, other = torch.randn(4, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    scale = torch.rand(4, 6).add(0.1).requires_grad_()
    prior = torch.rand(6).add(0.5).requires_grad_()
    key, inputs = new_key(), (mu, scale, other, prior)
    q, p = Normal(mu, scale), Normal(other, prior)
    truth = kl_divergence(q, p)
    made = gaussian_kl(mu, None, other, scale=scale, prior_scale=prior, reduction="elementwise")
    near(made, truth)
    for reduction, reduce in (
        ("none", lambda t: t.sum(1)),
        ("sum", torch.sum),
        ("batchmean", lambda t: t.sum(1).mean()),
    ):
        kl = gaussian_kl(mu, None, other, scale=scale, prior_scale=prior, reduction=reduction)
        near(kl, reduce(truth))
        for a, b in zip(gradients(kl, *inputs), gradients(reduce(truth), *inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    z, kl = sample_and_kl(mu, scale=scale, noise_key=key, reduction="elementwise")
    near(z, reparameterize(mu, 2 * scale.log(), noise_key=key))
    near(kl, kl_divergence(q, Normal(0.0, 1.0)))
    near(gaussian_kl(mu, 2 * scale.log(), reduction="elementwise"), kl)
    for a, b in zip(
        gradients(z, mu, scale),
        gradients(reparameterize(mu, 2 * scale.log(), noise_key=key), mu, scale),
        strict=True,
    ):
        near(a, b)


def test_a_logvar_that_is_shared(backend):
    mu = torch.randn(4, 6, requires_grad=True)
    for shape in ((6,), (4, 1), ()):
        logvar = torch.randn(shape, requires_grad=True)
        whole, key = logvar.expand(4, 6), new_key()
        for call in (
            lambda v, key=key: reparameterize(mu, v, noise_key=key),
            lambda v: gaussian_kl(mu, v, reduction="none"),
            lambda v: (
                vae_fast.bce_kl_loss(
                    torch.ones(4, 2), torch.ones(4, 2), mu, v, reduction="none"
                ).loss
            ),
        ):
            near(call(logvar), call(whole))
            for a, b in zip(
                gradients(call(logvar), mu, logvar), gradients(call(whole), mu, logvar), strict=True
            ):
                near(a, b)
    with pytest.raises(ValueError, match=r"\(4, 6\), logvar has shape \(4, 5\).*must broadcast"):
        gaussian_kl(mu, torch.zeros(4, 5))


def test_moments_stacked_in_one_tensor():
    parameters = torch.randn(2, 6, 4, 4).mul(20).requires_grad_()
    mu, logvar = split_moments(parameters, bounds=(-30, 20))
    assert torch.equal(mu, parameters[:, :3])
    assert torch.equal(logvar, parameters[:, 3:].clamp(-30, 20))
    (grad,) = torch.autograd.grad(logvar.sum(), parameters)
    assert torch.equal(
        grad[:, 3:], ((parameters[:, 3:] <= 20) & (parameters[:, 3:] >= -30)).float()
    )
    assert split_moments(parameters, dim=-1)[1].shape == (2, 6, 4, 2)
    with pytest.raises(ValueError, match="even size in dim 1.*5"):
        split_moments(torch.zeros(2, 5))


def test_a_term_for_each_element(backend):
    rate, dispersion = torch.rand(3, 4).add(0.1).requires_grad_(), torch.rand(4).add(0.5)
    counts = torch.randint(5, (3, 4))
    terms = vae_fast.nll("negative_binomial", [rate, dispersion], counts, reduction="elementwise")
    assert terms.shape == (3, 4)
    near(
        terms.sum(1),
        vae_fast.nll("negative_binomial", [rate, dispersion], counts, reduction="none"),
    )


def test_bernoulli_of_samples_by_probabilities_and_behind_the_batch(backend):
    logits = torch.randn(3, 4, 5, requires_grad=True)
    target = torch.rand(4, 5)
    probabilities = torch.sigmoid(logits)
    truth = F.binary_cross_entropy_with_logits(
        logits, target.expand(3, 4, 5), reduction="none"
    ).sum(2)
    for given, from_logits in ((logits, True), (probabilities, False)):
        value = vae_fast.bernoulli_nll_samples(given, target, from_logits=from_logits)
        behind = vae_fast.bernoulli_nll_samples(
            given.transpose(0, 1), target, from_logits=from_logits, samples_dim=1
        )
        for made in (value, behind.T):
            near(made, truth)
            near(gradients(made, logits)[0], gradients(truth, logits)[0])
    with pytest.raises(RuntimeError, match="probabilities must be between 0 and 1"):
        vae_fast.bernoulli_nll_samples(logits * 9, target, from_logits=False)
    with pytest.raises(ValueError, match=r"must be \(B, K, \.\.\.\)"):
        vae_fast.bernoulli_nll_samples(logits, target, samples_dim=1)


@pytest.mark.parametrize("dreg", [False, True])
def test_the_bound_of_probabilities_and_behind_the_batch(backend, dreg):
    mu, logvar = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    decoder, target, key = torch.randn(2, 5), torch.rand(4, 5), new_key()

    def bound(from_logits, samples_dim):
        z = reparameterize(mu, logvar, num_samples=3, noise_key=key)
        z = z.transpose(0, 1) if samples_dim else z
        made = z @ decoder if from_logits else torch.sigmoid(z @ decoder)
        return vae_fast.iwae_bound(
            made, target, z, mu, logvar, dreg=dreg, from_logits=from_logits, samples_dim=samples_dim
        )

    expected, log_weight = bound(True, 0)
    grads = gradients(expected, mu, logvar)
    for from_logits, samples_dim in ((False, 0), (True, 1), (False, 1)):
        value, weights = bound(from_logits, samples_dim)
        near(value, expected)
        near(weights.T if samples_dim else weights, log_weight)
        for a, b in zip(gradients(value, mu, logvar), grads, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_noise_and_spread_are_given_in_one_way_only():
    mu = torch.zeros(2, 3)
    for call, message in (
        (lambda: reparameterize(mu, mu, scale=mu), "logvar and scale are both given"),
        (lambda: gaussian_kl(mu, mu, scale=mu), "logvar and scale are both given"),
        (lambda: reparameterize(mu, mu, noise_key=new_key(), eps=mu), "noise_key and eps are"),
        (lambda: reparameterize(mu), "logvar is missing"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"eps has shape \(2,\).*asks for \(2, 3\)"):
        reparameterize(mu, mu, eps=torch.zeros(2))
    with pytest.raises(ValueError, match="'batchmean', 'elementwise', got 'mean'"):
        gaussian_kl(mu, mu, reduction="mean")
