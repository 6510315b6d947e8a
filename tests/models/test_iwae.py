"""The K-sample bound and its gradients against a float64 reference that spells everything out."""

import math

import pytest
import torch

import vae_fast
from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.models import build

K, N, D = 6, 4, 2


def tiny(**options):
    torch.manual_seed(0)
    return build(
        "iwae",
        (1, 3, 2),
        latent_dim=D,
        num_samples=K,
        network_options={"hidden": [5], "activation": "tanh"},
        **options,
    ).double()


def spelled_out(model, x, key, *, dreg=False):
    """(bound, surrogate): the surrogate's gradient is the estimator's, by equation 14 of Burda
    et al. 2015 with the normalised weights detached, or by equation 8 of Tucker et al. 2018.
    """
    mu, logvar = model.encoder(x).chunk(2, -1)
    k = model.num_samples
    eps = reference.normal(key, (k, N, D), torch.float64)
    log_w, surrogate = torch.empty(k, N, dtype=torch.float64), 0.0
    terms = []
    for i in range(k):
        z = mu + torch.exp(0.5 * logvar) * eps[i]
        m, s = (mu.detach(), logvar.detach()) if dreg else (mu, logvar)
        log_q = torch.distributions.Normal(m, torch.exp(0.5 * s)).log_prob(z).sum(1)
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        p_x = torch.distributions.Bernoulli(logits=model.decoder(z), validate_args=False)
        terms.append((p_x.log_prob(x).flatten(1).sum(1), log_p, log_q, z))
        log_w[i] = terms[-1][0] + log_p - log_q
    weights = (log_w - torch.logsumexp(log_w, 0)).exp().detach()
    for i, (log_lik, log_p, log_q, _) in enumerate(terms):
        surrogate = surrogate - (weights[i] * (log_lik + log_p - log_q)).sum() / N
    bound = (torch.logsumexp(log_w, 0) - math.log(k)).detach()
    return bound, surrogate, weights, terms


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_bound_and_gradient():
    model, key = tiny(), noise.new_key()
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    bound, surrogate, _, _ = spelled_out(model, x, key)
    out = model.loss(x, reduction="none", noise_key=key)
    torch.testing.assert_close(out.loss, -bound)
    expected = gradients(model, surrogate)
    found = gradients(model, model.loss(x, noise_key=key).loss)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_dreg_gradient():
    """The encoder's gradient: sum_k w_k^2 (d log w_k / d z_k) (d z_k / d phi), spelt out."""
    model, key = tiny(dreg=True), noise.new_key()
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    bound, surrogate, weights, terms = spelled_out(model, x, key, dreg=True)
    torch.testing.assert_close(model.loss(x, reduction="none", noise_key=key).loss, -bound)

    encoder = list(model.encoder.parameters())
    expected = [torch.zeros_like(p) for p in encoder]
    for i, (log_lik, log_p, log_q, z) in enumerate(terms):
        (by_z,) = torch.autograd.grad((log_lik + log_p - log_q).sum(), z, retain_graph=True)
        by_phi = torch.autograd.grad(
            z, encoder, -(weights[i] ** 2).unsqueeze(1) * by_z / N, retain_graph=True
        )
        expected = [e + g for e, g in zip(expected, by_phi, strict=True)]
    found = gradients(model, model.loss(x, noise_key=key).loss)
    for (name, _), value in zip(model.encoder.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[f"encoder.{name}"], value, msg=name)
    by_theta = gradients(model, surrogate)  # the decoder's is the plain estimator
    for name, _ in model.decoder.named_parameters():
        torch.testing.assert_close(found[f"decoder.{name}"], by_theta[f"decoder.{name}"])


@pytest.mark.parametrize("beta", [1.0, 0.3, 3.0])
def test_dreg_and_plain_gradients_agree_on_average(beta):
    """Both are unbiased for the same bound, so their means over many keys agree."""
    torch.manual_seed(0)
    plain, doubly = tiny(), tiny(dreg=True)
    doubly.load_state_dict(plain.state_dict())
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    means = []
    for model in (plain, doubly):
        total = 0.0
        for _ in range(60):
            rows = x.repeat(25, 1, 1, 1)
            total = total + gradients(model, model.loss(rows, beta=beta).loss)["encoder.1.weight"]
        means.append(total / 60)
    scale = means[0].abs().max()
    assert (means[0] - means[1]).abs().max() < 0.15 * scale


def test_one_sample_is_the_elbo():
    iwae, key = tiny(), noise.new_key()
    iwae.num_samples = 1
    vae = build(
        "vae", (1, 3, 2), latent_dim=D, network_options={"hidden": [5], "activation": "tanh"}
    ).double()
    vae.load_state_dict(iwae.state_dict())
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    one, elbo = (m.loss(x, reduction="none", noise_key=key) for m in (iwae, vae))
    torch.testing.assert_close(one.recon, elbo.recon)
    torch.testing.assert_close(one.kl, elbo.kl)
    # The bound has the KL's one-sample estimate where the ELBO has the integral.
    rows = x.repeat(20000, 1, 1, 1)
    many = iwae.loss(rows, reduction="none").loss.view(-1, N).mean(0)
    torch.testing.assert_close(
        many, vae.loss(rows, reduction="none").loss.view(-1, N).mean(0), rtol=0, atol=0.03
    )


def test_the_bound_tightens_with_k_to_the_likelihood():
    model = tiny()
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    losses = []
    for k in (1, 5, 50):
        model.num_samples = k
        losses.append(torch.stack([model.loss(x).loss for _ in range(300)]).mean().item())
    assert losses[0] > losses[1] > losses[2]
    # p(x) by brute force over a grid of z, which 2 latent dimensions allow.
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    params = model.decode(z).unsqueeze(1)
    p_x = torch.distributions.Bernoulli(logits=params, validate_args=False)
    log_joint = p_x.log_prob(x).flatten(2).sum(2)
    log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1, keepdim=True)
    exact = torch.logsumexp(log_joint + 2 * math.log(12 / 240), 0)
    model.num_samples = 50000
    with torch.no_grad():
        found = -model.loss(x, reduction="none").loss
    torch.testing.assert_close(found, exact.detach(), rtol=0, atol=0.02)


def test_terms_and_refusals():
    model = tiny()
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    out = model.loss(x)
    assert out.loss < out.recon + out.kl
    with pytest.raises(ValueError, match="free_bits"):
        model.loss(x, free_bits=0.1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build("iwae", (1, 3, 2), num_samples=0)


@pytest.mark.parametrize("dreg", [False, True])
def test_it_is_the_fused_bound(dreg):
    """vae_fast.iwae_bound, for the case it covers: Bernoulli pixels and a standard-normal prior."""
    model, key = tiny(dreg=dreg), noise.new_key()
    x = torch.randint(0, 256, (N, 1, 3, 2), dtype=torch.uint8)
    q = model.encode(x)
    z = vae_fast.reparameterize(*q, num_samples=K, noise_key=key)
    bound, _ = vae_fast.iwae_bound(model.decode(z), x, z, *q, dreg=dreg)
    out = model.loss(x, reduction="none", noise_key=key)
    torch.testing.assert_close(out.loss, -bound)
    expected = gradients(model, -bound.mean())
    found = gradients(model, model.loss(x, noise_key=key).loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
def test_other_likelihoods_are_weighed_alike(likelihood):
    model, key = tiny(likelihood=likelihood), noise.new_key()
    x = torch.rand(N, 1, 3, 2, dtype=torch.float64)
    samples = model.weighted_samples(x, num_samples=K, noise_key=key)
    for k in range(K):
        nll = model.likelihood.nll(model.decode(samples.z[k]), x, reduction="none")
        torch.testing.assert_close(samples.nll[k], nll)


@pytest.mark.parametrize(
    ("of", "shape", "options"),
    [
        ("vae", (1, 4, 4), {"latent_dim": 2}),
        ("cvae", (1, 4, 4), {"latent_dim": 2, "hidden": 4}),
        ("hvae", (1, 4, 4), {"levels": 2, "width": 4, "z_channels": 2, "hidden": [4]}),
        ("vrae", (5,), {"latent_dim": 2, "hidden": 4, "likelihood_options": {"num_classes": 3}}),
    ],
)
def test_the_bound_of_any_gaussian_model(of, shape, options):
    """-log mean w over the K samples, whatever model they are of."""
    torch.manual_seed(0)
    model = build("iwae", shape, of=of, num_samples=3, **options).double().eval()
    with torch.no_grad():  # away from the start, where last layers and residuals are zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randint(0, 3, (4, *shape)) if of == "vrae" else torch.rand(4, *shape).double()
    y = (torch.arange(4),) if of == "cvae" else ()
    key = noise.new_key()
    samples = model.weighted_samples(x, *y, num_samples=3, noise_key=key)
    out = model.loss(x, *y, reduction="none", noise_key=key)
    expected = math.log(3.0) - torch.logsumexp(samples.log_weight, 0)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.recon, samples.nll.mean(0))
    check_gradients(model, lambda: model(x, *y, noise_key=key).loss)


def test_the_bound_of_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="vae, cvae, hvae, vrae, not of 'aae'"):
        build("iwae", (1, 4, 4), of="aae")
