"""The autoencoder: its loss, its codes, and the Gaussian that stands in for a prior."""

import pytest
import torch
import torch.nn.functional as F

from vae_fast.models import build


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_loss_is_the_reconstruction_alone():
    model = build("ae", (1, 3, 4), latent_dim=2, network_options={"hidden": [5]}).double()
    x = torch.rand(6, 1, 3, 4, dtype=torch.float64)
    code = model.encoder(x)
    assert code.shape == (6, 2)
    expected = F.binary_cross_entropy_with_logits(model.decoder(code), x, reduction="sum") / 6
    out = model.loss(x, beta=7.0)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.recon, expected)
    assert out.kl == 0.0
    mu, logvar = model.encode(x)
    assert torch.equal(mu, code) and torch.all(logvar == -torch.inf)
    torch.testing.assert_close(model.reconstruct(x), torch.sigmoid(model.decoder(code)))


def test_gradients():
    model = build("ae", (5,), latent_dim=2, network_options={"hidden": [3], "activation": "tanh"})
    model = model.double().eval()
    x = torch.rand(3, 5, dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(*parameters):
        weights = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, weights, (x,))[0]

    assert torch.autograd.gradcheck(loss, [v.detach().requires_grad_() for v in values])


def test_samples_have_the_codes_mean_and_covariance():
    model = build("ae", (2,), latent_dim=2, network_options={"hidden": []}, momentum=0.05).double()
    x = torch.rand(1024, 2, dtype=torch.float64)
    x[:, 1] = 0.5 * x[:, 0] + 0.5 * x[:, 1]
    for _ in range(300):
        model.loss(x)
    codes, drawn = model.features(x).detach(), model.sample_prior(40000)
    spread = codes.std(0).max()
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.03 * spread.item())
    torch.testing.assert_close(drawn.t().cov(), codes.t().cov(), rtol=0.05, atol=2e-3)
    before = model.code_mean.clone()
    model.eval().loss(x + 1.0)
    assert torch.equal(model.code_mean, before)


def test_samples_before_training_are_finite():
    assert build("ae", (1, 4, 4)).sample(3).isfinite().all()


def test_it_follows_its_codes_under_autocast():
    model = build("ae", (1, 4, 4), latent_dim=3)
    model.train()
    x = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model.encode(x).mu.float()
        model.loss(x)
    torch.testing.assert_close(model.code_square, z.t() @ z / len(z), rtol=1e-3, atol=1e-4)


def test_its_codes_statistics_are_a_plain_mean_at_first_and_then_a_running_one():
    model = build("ae", (4,), latent_dim=2, momentum=0.1).double()
    batches = torch.rand(30, 8, 4, dtype=torch.float64)
    means = [model.features(x).detach().mean(0) for x in batches]
    for x in batches[:7]:
        model.loss(x)
    torch.testing.assert_close(model.code_mean, torch.stack(means[:7]).mean(0))
    expected = torch.stack(means[:10]).mean(0)
    for x in batches[7:]:
        model.loss(x)
    for mean in means[10:]:
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(model.code_mean, expected)
