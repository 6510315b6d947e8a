"""Conditional models: the bound by hand, gradients, conditions of each kind, and control."""

import pytest
import torch

from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.functional.images import edges, left_half
from vae_fast.models import build

SHAPE = (1, 4, 4)


def tiny(name="cvae", **options):
    torch.manual_seed(0)
    networks = {"hidden": [5], "activation": "tanh"}
    return build(name, SHAPE, latent_dim=2, hidden=3, network_options=networks, **options).double()


def images(n=5):
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prior", ["standard", "learned"])
def test_loss_by_hand(prior):
    model, key = tiny(prior=prior, condition_options={"num_classes": 3}), noise.new_key()
    x, y = images(), torch.tensor([0, 1, 2, 0, -1])
    one_hot = 3**0.5 * torch.eye(4, 3, dtype=torch.float64)[y]  # the row of -1 is zero
    h = model.encoder(x)
    mu, logvar = model.head(torch.cat([h, one_hot], 1)).chunk(2, 1)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    z = mu + q.scale * reference.normal(key, (5, 2), torch.float64)
    logits = model.decoder(torch.cat([z, one_hot], 1))
    p_x = torch.distributions.Bernoulli(logits=logits, validate_args=False)
    recon = -p_x.log_prob(x).flatten(1).sum(1)
    p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    if prior == "learned":
        prior_mu, prior_logvar = model.prior_network(one_hot).chunk(2, 1)
        p = torch.distributions.Normal(prior_mu, torch.exp(0.5 * prior_logvar))
    kl = torch.distributions.kl_divergence(q, p).sum(1)
    out = model.loss(x, y, beta=2.0, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, recon + 2.0 * kl)
    torch.testing.assert_close(model.kl_per_dimension(x, y).sum(), kl.mean())


@pytest.mark.parametrize(
    ("options", "y"),
    [
        ({"condition": "labels", "condition_options": {"num_classes": 3}}, torch.tensor([2, 0, 1])),
        ({"condition": "attributes", "condition_options": {"size": 2}}, torch.rand(3, 2)),
        ({"condition": "images", "condition_options": {"shape": (2, 3), "features": 2}},
         torch.rand(3, 2, 3)),
        ({"condition": "left-half", "prior": "learned"}, None),
        ({"condition": "edges", "condition_options": {"features": 3}}, None),
    ],
)  # fmt: skip
def test_gradients_under_every_condition(options, y):
    model, key, x = tiny(**options), noise.new_key(), images(3)
    check_gradients(model, lambda: model(x, y, noise_key=key).loss)


def test_the_condition_controls_the_samples():
    """Two classes, black and white: after training, the label decides which is drawn."""
    torch.manual_seed(0)
    model = build("cvae", SHAPE, latent_dim=2, hidden=16, condition_options={"num_classes": 2})
    y = torch.arange(64) % 2
    x = y.to(torch.uint8).mul(255)[:, None, None, None].expand(64, *SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(x, y).loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = model.sample(6).flatten(1).mean(1)  # classes 0, 1, 0, 1, ...
        assert (drawn[0::2] < 0.1).all() and (drawn[1::2] > 0.9).all()
        white = model.sample(4, torch.ones(4, dtype=torch.int64))
        assert (white > 0.9).all()
        swapped = model.decode(model.features(x, y), 1 - y)
    assert (torch.sigmoid(swapped).flatten(1).mean(1)[y == 1] < 0.1).all()


def test_conditional_iwae_is_the_cvae_for_one_sample():
    iwae, key = tiny("iwae", condition="labels", num_samples=1), noise.new_key()
    cvae = tiny("cvae")
    cvae.load_state_dict(iwae.state_dict())
    x, y = images(), torch.arange(5)
    one, elbo = (m.loss(x, y, reduction="none", noise_key=key) for m in (iwae, cvae))
    torch.testing.assert_close(one.recon, elbo.recon)
    torch.testing.assert_close(one.kl, elbo.kl)
    q = iwae.encode(x, y)
    eps = reference.normal(key, (5, 2), torch.float64)
    z = q.mu + torch.exp(0.5 * q.logvar) * eps
    log_ratio = 0.5 * (z**2 - eps**2 - q.logvar).sum(1)
    torch.testing.assert_close(one.loss, elbo.recon + log_ratio)


def test_derived_conditions():
    x = torch.zeros(1, 1, 4, 6)
    x[..., 3:] = 1.0
    assert torch.equal(left_half(x), torch.zeros_like(x))
    expected = torch.zeros(4, 6)
    expected[:, 2:4] = 1.0  # the step between columns 2 and 3, seen from both sides
    torch.testing.assert_close(edges(x)[0, 0], expected)
    torch.testing.assert_close(edges((x * 255).to(torch.uint8)), edges(x))
    both = x.repeat(2, 3, 1, 1)
    torch.testing.assert_close(edges(both), edges(x).repeat(2, 3, 1, 1))


def test_image_conditions_are_remembered_for_sampling():
    model, x = tiny(condition="left-half"), images(3)
    model.train().loss(x)
    model.eval().loss(torch.zeros_like(x))
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    condition = torch.cat([left_half(x), torch.zeros(2, *SHAPE, dtype=torch.float64)])
    expected = torch.sigmoid(model.decode(z, condition))
    found = model.sample(5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny(condition="label"), "unknown condition 'label'; known: labels"),
        (lambda: tiny(condition="attributes"), "condition_options={'size'"),
        (lambda: tiny(prior="flat"), "standard, learned, gaussian, mixture"),
        (lambda: tiny().loss(images()), "conditional"),
        (lambda: tiny().loss(images(), torch.tensor([0, 1, 2, 3, 10])), "label 10.*num_classes=10"),
        (lambda: tiny().loss(images(), torch.zeros(5, 1, dtype=torch.int64)), r"\(N,\).*\(5, 1\)"),
        (
            lambda: tiny().sample(3, torch.tensor([1, 2])),
            "n is 3, but y has 2 entries: they must be equal",
        ),
        (
            lambda: tiny(condition="attributes", condition_options={"size": 2}).sample(3),
            "conditional",
        ),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
