"""The reference against PyTorch's own losses, distributions and numerical gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_fast import reference
from vae_fast.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS
from vae_fast.types import REDUCTIONS, LossOutput

KEY = torch.tensor([-1, 2**62 + 12345])


def gaussians(*shape):
    return [torch.randn(shape, dtype=torch.float64) for _ in range(4)]


def distribution(mu, logvar):
    return Normal(mu, torch.exp(0.5 * logvar))


# --- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 3), (7,), ()], ids=str)
def test_reductions(shape):
    """Samples are dim 0; a 1-D tensor is one sample."""
    values = torch.randn(shape, dtype=torch.float64)
    samples = shape[0] if len(shape) >= 2 else 1
    assert reference.samples_of(values) == samples
    total = values.sum()
    torch.testing.assert_close(reference.reduce(values, "sum"), total)
    torch.testing.assert_close(reference.reduce(values, "batchmean"), total / samples)
    each = reference.reduce(values, "none")
    if len(shape) >= 2:
        want = torch.stack([row.sum() for row in values])
        torch.testing.assert_close(each, want)
    else:
        assert each.shape == ()
        torch.testing.assert_close(each, total)


# --- Gaussian ------------------------------------------------------------------------------------


def test_kl_is_torchs():
    mu, logvar, prior_mu, prior_logvar = gaussians(6, 11)
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    torch.testing.assert_close(
        reference.gaussian_kl_terms(mu, logvar), kl_divergence(distribution(mu, logvar), standard)
    )
    torch.testing.assert_close(
        reference.gaussian_kl_terms(mu, logvar, prior_mu, prior_logvar),
        kl_divergence(distribution(mu, logvar), distribution(prior_mu, prior_logvar)),
    )
    torch.testing.assert_close(
        reference.gaussian_kl_terms(mu, logvar, torch.zeros_like(mu), torch.zeros_like(mu)),
        reference.gaussian_kl_terms(mu, logvar),
    )


def test_kl_by_sampling():
    """The definition: the mean of log q(z) - log p(z) over draws of reparameterize."""
    mu, logvar, prior_mu, prior_logvar = gaussians(3)
    z = reference.reparameterize(mu, logvar, 400_000, KEY)
    q, p = distribution(mu, logvar), distribution(prior_mu, prior_logvar)
    ratio = (q.log_prob(z) - p.log_prob(z)).sum(1)
    want = reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar, "sum")
    error = ratio.std() / len(ratio) ** 0.5
    assert abs(ratio.mean() - want) < 5 * error


def test_draws_have_the_mean_and_variance_asked_for():
    mu, logvar = torch.tensor([3.0, -1.0]), torch.tensor([2.0, -4.0])
    z = reference.reparameterize(mu, logvar, 200_000, KEY).double()
    sigma = torch.exp(0.5 * logvar.double())
    assert ((z.mean(0) - mu).abs() < 5 * sigma / 200_000**0.5).all()
    assert ((z.std(0) / sigma - 1).abs() < 5 / 400_000**0.5).all()


def test_gaussian_gradients_are_right():
    inputs = [t.requires_grad_() for t in gaussians(3, 4)]
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda *a, r=reduction: reference.gaussian_kl(*a, r), inputs
        )
        assert torch.autograd.gradcheck(
            lambda *a, r=reduction: reference.sample_and_kl(*a, None, None, KEY, r), inputs[:2]
        )
    assert torch.autograd.gradcheck(lambda *a: reference.reparameterize(*a, 3, KEY), inputs[:2])


def test_without_a_key_noise_comes_from_torchs_generator():
    mu = torch.zeros(3, 5)
    torch.manual_seed(4)
    want = torch.randn(3, 5)
    torch.manual_seed(4)
    assert torch.equal(reference.reparameterize(mu, mu), want)


# --- Bernoulli -----------------------------------------------------------------------------------


def test_nll_is_torchs():
    logits, target = torch.randn(6, 11).double() * 4, torch.rand(6, 11).double()
    terms = reference.nll_terms(BERNOULLI, [logits], target)
    want = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(terms, want)
    p = torch.sigmoid(logits)
    torch.testing.assert_close(reference.nll_terms(BERNOULLI_PROBS, [p], target), want)
    hard = (target > 0.5).double()
    torch.testing.assert_close(
        reference.nll_terms(BERNOULLI, [logits], target > 0.5), -Bernoulli(p).log_prob(hard)
    )
    byte = (target * 255).to(torch.uint8)
    torch.testing.assert_close(
        reference.nll_terms(BERNOULLI, [logits], byte),
        reference.nll_terms(BERNOULLI, [logits], byte.double() / 255),
    )


def test_probabilities_have_torchs_clamps():
    p = torch.tensor([0.0, 1.0, 0.0, 1.0, 1e-30, 0.3, 1 - 1e-7], requires_grad=True)
    target = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.7, 0.0], requires_grad=True)
    results = []
    for loss in (
        lambda: reference.nll_terms(BERNOULLI_PROBS, [p], target),
        lambda: F.binary_cross_entropy(p, target, reduction="none"),
    ):
        values = loss()
        results.append((values, *torch.autograd.grad(values.sum(), (p, target))))
    (values, grads, target_grads), (want, want_grads, want_target_grads) = results
    torch.testing.assert_close(values, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads, want_grads, rtol=1e-6, atol=0)
    # The target's gradient is the difference of the clamped logarithms; torch's are not clamped.
    torch.testing.assert_close(target_grads, want_target_grads.clamp(-100, 100), rtol=1e-6, atol=0)


@pytest.mark.parametrize("from_logits", [True, False])
def test_bernoulli_gradients_are_right(from_logits):
    spec = BERNOULLI if from_logits else BERNOULLI_PROBS
    x = torch.rand(3, 4, dtype=torch.float64).mul(0.8).add(0.1).requires_grad_()
    target = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda x, t, r=reduction: reference.nll(spec, [x], t, r), [x, target]
        )


# --- the two together ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bce_kl_is_the_sum_of_its_parts(reduction):
    logits, target = torch.randn(6, 11), torch.rand(6, 11)
    mu, logvar = torch.randn(6, 3), torch.randn(6, 3)
    out = reference.elbo(BERNOULLI, [logits], target, mu, logvar, 0.5, reduction)
    assert isinstance(out, LossOutput)
    torch.testing.assert_close(out.recon, reference.nll(BERNOULLI, [logits], target, reduction))
    torch.testing.assert_close(out.kl, reference.gaussian_kl(mu, logvar, reduction=reduction))
    torch.testing.assert_close(out.loss, out.recon + 0.5 * out.kl)


def test_the_tutorials_loss():
    """Reduction "sum" is the loss that the usual tutorial writes out."""
    x, p = torch.rand(6, 11), torch.rand(6, 11)
    mu, logvar = torch.randn(6, 3), torch.randn(6, 3)
    want = F.binary_cross_entropy(p, x, reduction="sum") - 0.5 * torch.sum(
        1 + logvar - mu.pow(2) - logvar.exp()
    )
    got = reference.elbo(BERNOULLI_PROBS, [p], x, mu, logvar)
    torch.testing.assert_close(got.loss, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(dtype):
    """2^15 terms of 1/2: a sum in half precision would stop growing long before."""
    ones = torch.ones(1, 2**15, dtype=dtype)
    assert reference.gaussian_kl(ones, 0 * ones).item() == 2.0**14
    z = reference.reparameterize(ones, -60 * ones, noise_key=KEY)
    assert z.dtype == dtype and z.eq(1).all()
