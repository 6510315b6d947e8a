"""The hierarchy: its bound by hand, level by level, its gradients, and the meaning of its z."""

import pytest
import torch

from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.models import build, hvae
from vae_fast.models.call import streams_of

SHAPE = (1, 5, 4)


def tiny(network, **options):
    torch.manual_seed(0)
    levels = {"mlp": 3, "conv": [[1, 1], [2, 1], [3, 2]]}[network]
    model = build(
        "hvae", SHAPE, network=network, levels=levels, width=4, z_channels=2, **options
    ).double()
    with torch.no_grad():  # away from the start, where priors are standard and residuals zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(n=3):
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_loss_by_hand(network):
    model, key, x = tiny(network), noise.new_key(), images()
    activations = model.encoder(x)
    h, kl = model.top.expand(3, -1, -1, -1), 0.0
    for number, level in enumerate(model.levels):
        if h.shape[2:] != level.size:
            h = torch.nn.functional.interpolate(h, level.size)
        p_mu, p_logvar, added = level.prior_network(h).split([2, 2, 4], 1)
        activation = activations[model.stage_of[number]]
        mu, logvar = level.posterior_network(torch.cat([h, activation], 1)).chunk(2, 1)
        q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
        p = torch.distributions.Normal(p_mu, torch.exp(0.5 * p_logvar))
        kl = kl + torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
        eps = reference.normal(streams_of(key, number), tuple(mu.shape), torch.float64)
        h = h + added + level.z_to_h(mu + q.scale * eps)
        h = h + level.residual(h)
    p_x = torch.distributions.Bernoulli(logits=model.decoder(h), validate_args=False)
    recon = -p_x.log_prob(x).flatten(1).sum(1)
    out = model.loss(x, beta=2.0, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, recon + 2.0 * kl)
    assert (kl > 0.1).all()


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_gradients(network):
    model, key, x = tiny(network), noise.new_key(), images(2)
    check_gradients(model, lambda: model(x, noise_key=key).loss)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_encode_decode_and_sample_agree(network):
    model, x = tiny(network), images()
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (3, model.latent_dim)
    # Two channels each of the sizes 1x1, 2x1 and twice 3x2.
    assert model.latent_dim == {"mlp": 6, "conv": 2 * (1 + 2 + 6 + 6)}[network]
    # Sampling with temperature 0 is decoding the z that such sampling gives.
    z = model.sample_prior(2, temperature=0.0)
    torch.testing.assert_close(torch.sigmoid(model.decode(z)), model.sample(2, temperature=0.0))
    stacked = torch.stack([mu, mu + 1.0])
    torch.testing.assert_close(model.decode(stacked)[1], model.decode(mu + 1.0))
    torch.testing.assert_close(model.reconstruct(x), torch.sigmoid(model.decode(mu)))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_weights_average_to_the_elbo(network):
    model, x = tiny(network), images(1).repeat(500, 1, 1, 1)
    with torch.no_grad():
        out = model.loss(x, reduction="none")
        samples = model.weighted_samples(x, num_samples=4)
        torch.testing.assert_close(
            -samples.log_weight.mean(), out.loss.mean(), rtol=0.03, atol=0.03
        )
        torch.testing.assert_close(samples.kl.mean(), out.kl.mean(), rtol=0.03, atol=0.03)
        torch.testing.assert_close(
            model.kl_per_dimension(x).sum(), out.kl.mean(), rtol=0.05, atol=0.03
        )
    with pytest.raises(ValueError, match="dreg"):
        model.weighted_samples(x, num_samples=2, constant_posterior=True)


def test_free_bits_are_per_level():
    model, key, x = tiny("mlp"), noise.new_key(), images()
    floored = model.loss(x, free_bits=50.0, noise_key=key)
    torch.testing.assert_close(floored.kl, torch.tensor(150.0, dtype=torch.float64))
    plain = model.loss(x, noise_key=key)
    torch.testing.assert_close(model.loss(x, free_bits=1e-9, noise_key=key).kl, plain.kl)


def test_a_vdvae_by_config_and_its_refusals():
    model = build("hvae", (3, 32, 32), levels=[[1, 2], [4, 3], [8, 5], [16, 6]], width=8)
    assert len(model.levels) == 16
    assert model.reconstruct(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).shape == (
        2, 3, 32, 32,
    )  # fmt: skip
    assert len(build("hvae", (1, 28, 28), network="conv", width=8).levels) == 14
    with pytest.raises(ValueError, match=r"pyramid \[1, 2, 4, 8, 16, 32\].*\(5, 1\)"):
        build("hvae", (3, 32, 32), levels=[[5, 1]])
    with pytest.raises(ValueError, match="coarse to fine"):
        build("hvae", (3, 32, 32), levels=[[8, 1], [4, 1]])
    with pytest.raises(ValueError, match="mlp or conv"):
        build("hvae", (3, 32, 32), network="resnet")


def test_a_draw_from_the_posterior_goes_from_the_top_down(monkeypatch):
    """Lower levels' posteriors depend on the draw above, not on the mean above."""
    torch.manual_seed(0)
    model = build("hvae", (1, 4, 4), levels=2, width=4, z_channels=1).double().eval()
    with torch.no_grad():  # away from the start, where levels ignore each other
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    monkeypatch.setattr(hvae, "reparameterize", lambda mu, logvar: mu + 1.0)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    drawn, at_means = model.sample_posterior(x), model.encode(x).mu
    posterior, expected = model._posterior(x), []

    def draw(number, p, h):
        expected.append(posterior(number, h).mu + 1.0)
        return expected[-1]

    model.run_top_down(2, draw)
    torch.testing.assert_close(drawn, torch.cat([z.flatten(1) for z in expected], 1))
    top = expected[0].flatten(1).shape[1]
    torch.testing.assert_close(drawn[:, :top], at_means[:, :top] + 1.0)
    assert (drawn[:, top:] - at_means[:, top:] - 1.0).abs().max() > 1e-3
