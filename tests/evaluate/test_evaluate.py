"""Evaluation compared with known values."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vae_fast import evaluate as ev
from vae_fast.data import sprites
from vae_fast.models import Bernoulli, BetaVAE, Gaussian, build


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Widen(nn.Module):
    """A linear map with fixed weights, to build models whose likelihood is known exactly."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x @ self.weight.t() + self.bias


def probabilistic_pca(noise=0.5):
    """x = W z + b + noise: p(x) and p(z | x) are Gaussian, and the encoder is the true posterior
    but for a diagonal variance.
    """
    w = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]], dtype=torch.float64)
    b = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    precision = torch.eye(2, dtype=torch.float64) + w.t() @ w / noise**2  # diagonal for this w
    gain = torch.linalg.solve(precision, w.t()) / noise**2
    logvar = -precision.diagonal().log()
    encoder = Widen(torch.cat([gain, torch.zeros(2, 3).double()]), torch.cat([-gain @ b, logvar]))
    model = BetaVAE(encoder, Widen(w, b), input_shape=(3,), latent_dim=2,
                likelihood=Gaussian(scale=noise)).double()  # fmt: skip
    covariance = w @ w.t() + noise**2 * torch.eye(3, dtype=torch.float64)
    return model, torch.distributions.MultivariateNormal(b, covariance)


def test_nll_of_an_exactly_known_model():
    """With the exact posterior every weight is p(x): one sample already gives the NLL."""
    model, p = probabilistic_pca()
    x = p.sample((50,))
    for k, at_once in ((1, 1), (7, 3)):
        nll = ev.importance_nll(model, x, num_samples=k, samples_at_once=at_once, batch_size=16)
        torch.testing.assert_close(nll, -p.log_prob(x))
    terms = ev.elbo(model, x.repeat(200, 1))
    torch.testing.assert_close(
        terms.loss.view(200, 50).mean(0).mean(), -p.log_prob(x).mean(), rtol=0.02, atol=0.0
    )
    torch.testing.assert_close(terms.loss, terms.recon + terms.kl)


def test_nll_tightens_and_does_not_depend_on_chunks():
    model = build("vae", (1, 4, 4), latent_dim=2, network_options={"hidden": [8]}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    bound = ev.elbo(model, x.repeat(400, 1, 1, 1)).loss.view(400, 6).mean(0)
    first, second = (
        ev.importance_nll(model, x, num_samples=4000, samples_at_once=chunk) for chunk in (100, 999)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0.05)
    assert (first < bound).all()


def test_nll_of_a_wrong_posterior_comes_down_to_the_exact_one():
    """Linear and Gaussian, with a posterior off in mean and variance: the bound exceeds the exact
    NLL by the KL between the two, and importance sampling closes that.
    """
    model, p = probabilistic_pca()
    x = p.sample((40,))
    exact_q = model.encode(x)
    with torch.no_grad():
        model.encoder.bias += torch.tensor([0.3, -0.2, 0.5, 0.4], dtype=torch.float64)
    q = model.encode(x)
    ratio = (q.logvar - exact_q.logvar).exp()
    shift = (q.mu - exact_q.mu).square() / exact_q.logvar.exp()
    gap = 0.5 * (ratio + shift - 1 - ratio.log()).sum(1)
    exact = -p.log_prob(x)
    bound = ev.elbo(model, x.repeat(2000, 1)).loss.view(2000, 40).mean(0)
    torch.testing.assert_close(bound.mean(), (exact + gap).mean(), rtol=0, atol=0.02)
    assert gap.min() > 0.1
    nll = ev.importance_nll(model, x, num_samples=20_000, samples_at_once=5000)
    torch.testing.assert_close(nll, exact, rtol=0, atol=0.05)
    few = ev.importance_nll(model, x.repeat(200, 1), num_samples=2).mean()
    assert exact.mean() < few < (exact + gap).mean()


@pytest.mark.parametrize("name", ["vae", "hvae", "ssvae"])
def test_memory_of_the_nll_does_not_grow_with_its_samples(name):
    options = {"hvae": {"width": 4, "levels": 2, "z_channels": 2}}
    networks = {"network_options": {"hidden": [4]}, "latent_dim": 2}
    model = build(name, (1, 2, 2), **options.get(name, networks))
    rows = []
    model.decoder.register_forward_hook(lambda module, given, made: rows.append(len(made)))
    x = torch.rand(7, 1, 2, 2)
    ev.importance_nll(model, x, num_samples=73, batch_size=4, samples_at_once=10)
    classes = 10 if name == "ssvae" else 1
    assert max(rows) <= 4 * 10 * classes and sum(rows) == 7 * 73 * classes


def test_evaluation_leaves_the_model_in_training_mode():
    model = build("vae", (4,), network_options={"hidden": [3], "dropout": 0.5})
    model.train()
    errors = [ev.reconstruction_error(model, torch.full((5, 4), 0.3)) for _ in range(2)]
    assert torch.equal(*errors) and model.training


def test_bits_per_dimension():
    assert ev.bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1.0)
    # A density of 8-bit values as probabilities of 0, 1/255, ... 1, which add up to 1.
    levels = torch.arange(256, dtype=torch.float64) / 255
    density = torch.distributions.Normal(0.5, 0.1).log_prob(levels)
    bits = torch.stack([ev.bits_per_dimension(-nats, 1, levels=256) for nats in density])
    assert torch.exp2(-bits).sum().item() == pytest.approx(1.0, abs=1e-5)


def test_kl_per_dimension_and_active_units():
    model, p = probabilistic_pca()
    x = p.sample((300,))
    mu, logvar = model.encode(x)
    expected = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).mean(0)
    torch.testing.assert_close(ev.kl_per_dimension(model, x, batch_size=37), expected)
    means = torch.randn(1000, 3) * torch.tensor([1.0, 0.2, 0.05])
    assert ev.active_units(means) == 2 and ev.active_units(means, threshold=0.5) == 1
    torch.testing.assert_close(ev.features(model, x, batch_size=7), mu)


def test_mig_knows_aligned_from_entangled():
    factors = torch.stack([torch.arange(4000) % 4, (torch.arange(4000) // 4) % 5], 1)
    aligned = factors.double() + 0.01 * torch.rand(4000, 2)
    assert ev.mutual_information_gap(aligned, factors) > 0.99
    twice = aligned[:, [0, 0, 1]]  # two dimensions for the same factor leave it no gap
    assert ev.mutual_information_gap(twice, factors) == pytest.approx(0.5, abs=0.02)
    angle = math.pi / 4
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert ev.mutual_information_gap(aligned @ turn.double(), factors) < 0.2
    with pytest.raises(ValueError, match="2 or more"):
        ev.mutual_information_gap(aligned[:, :1], factors)


def test_mig_of_sprites_factors():
    """Against numpy's histograms, with the highest and the lowest gap that 20 bins allow."""
    factors = sprites.factors_of(torch.randperm(sprites.COUNT)[:5000])
    noise = torch.randn(5000, 5).double()
    perfect = torch.cat([factors.double(), noise], 1)
    turned = perfect @ torch.linalg.qr(torch.randn(10, 10).double())[0]

    def by_numpy(codes):
        gaps = []
        for f in factors.numpy().T:
            p_f = np.bincount(f) / len(f)
            found = []
            for z in codes.numpy().T:
                p = np.histogram2d(z, f, bins=[20, len(p_f)])[0] / len(f)
                alone = np.outer(p.sum(1), p.sum(0))
                found.append((p[p > 0] * np.log(p[p > 0] / alone[p > 0])).sum())
            best, second = sorted(found)[:-3:-1]
            gaps.append((best - second) / -(p_f * np.log(p_f)).sum())
        return np.mean(gaps)

    for codes in (perfect, turned):
        assert ev.mutual_information_gap(codes, factors) == pytest.approx(by_numpy(codes), abs=1e-6)
    # 20 bins hold ln 20 nats at most: of the positions' ln 32, of the orientations' ln 40.
    highest = (1 + 1 + math.log(20, 40) + 2 * math.log(20, 32)) / 5
    assert ev.mutual_information_gap(perfect, factors) == pytest.approx(highest, abs=0.03)
    assert ev.mutual_information_gap(turned, factors) < 0.15
    assert ev.mutual_information_gap(noise, factors) < 0.01


def test_factor_vae_score_knows_aligned_from_random():
    generator = torch.Generator().manual_seed(0)

    def draw(factor, n):
        values = torch.rand(n, 3, generator=generator)
        values[:, factor] = values[0, factor]
        return values, factor

    ones = torch.full((3,), 0.29)
    assert ev.factor_vae_score(lambda x: x, draw, 3, scales=ones, votes=200) == 1.0
    noise = torch.Generator().manual_seed(1)
    random = ev.factor_vae_score(
        lambda x: torch.randn(len(x), 3, generator=noise), draw, 3, scales=torch.ones(3), votes=600
    )
    assert random < 0.5
    assert ev.factor_vae_score(lambda x: x, draw, 3, scales=torch.zeros(3)) == pytest.approx(1 / 3)


def test_auroc_counts_pairs():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.4])
    positive = torch.tensor([False, False, True, True, True])
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[positive].tolist()
        for n in scores[~positive].tolist()
    ]
    assert ev.auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    assert ev.auroc(-scores, ~positive) == pytest.approx(ev.auroc(scores, positive))
    for bad, message in [
        ((scores, torch.zeros(5, dtype=torch.bool)), "0 positives and 5 negatives"),
        ((scores[:4], positive), "4 scores, but 5"),
        ((scores * math.nan, positive), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            ev.auroc(*bad)


def test_accuracy():
    truth = torch.tensor([0, 1, 2, 1])
    assert ev.accuracy(torch.tensor([0, 1, 1, 1]), truth) == 0.75
    assert ev.accuracy(torch.eye(3)[truth], truth) == 1.0


def test_the_report_names_its_measures():
    model = build("vae", (1, 4, 4), latent_dim=2, network_options={"hidden": [8]})
    grey = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    report = ev.evaluate(model, grey, num_samples=20)
    assert report["pixels"] == "grey" and report["likelihood"] == "bernoulli (probability)"
    assert report["elbo"] == pytest.approx(-(report["recon"] + report["kl"]), rel=1e-5)
    assert report["nll"] <= -report["elbo"] + 1.0 and report["nll_samples"] == 20
    assert sum(report["kl_per_dimension"]) == pytest.approx(report["kl"], abs=1e-3)
    assert report["bits_per_dimension"] == pytest.approx(report["nll"] / (16 * math.log(2)))
    assert ev.evaluate(model, grey, num_samples=20) == report
    binary = (grey > 127).to(torch.uint8) * 255
    assert ev.evaluate(model, binary, num_samples=0)["pixels"] == "binary"
    unit = (grey > 127).float()
    kinds = [ev.pixel_kind(values) for values in (unit, unit / 2, unit - 0.5)]
    assert kinds == ["binary", "grey", "real"]
    density = build("vae", (1, 4, 4), likelihood="gaussian", network_options={"hidden": [8]})
    other = ev.evaluate(density, grey, num_samples=2)
    assert other["likelihood"] == "gaussian (density)"
    nats_to_bits = other["nll"] / (16 * math.log(2)) + math.log2(255)
    assert other["bits_per_dimension"] == pytest.approx(nats_to_bits)


@pytest.mark.parametrize("name", ["ae", "aae", "cvae", "ssvae", "hvae", "vrae", "iwae"])
def test_report_of_every_kind_of_model(name):
    options = {"hvae": {"width": 8, "levels": [[1, 1], [3, 1]]}, "vrae": {"hidden": 8}}
    model = build(name, (1, 6, 6), **options.get(name, {"network_options": {"hidden": [8]}}))
    x, y = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8), torch.arange(12) % 10
    report = ev.evaluate(model, x, y, num_samples=3, batch_size=5)
    assert math.isfinite(report["reconstruction_mse"])
    if name in ("ae", "aae"):
        assert "elbo" not in report
        with pytest.raises(TypeError, match="posterior and a prior"):
            ev.elbo(model, x)
    else:
        assert math.isfinite(report["nll"]) and len(report["kl_per_dimension"]) == model.latent_dim
    assert ("accuracy" in report) == (name == "ssvae")


def test_bernoulli_is_named_for_what_it_is():
    assert Bernoulli().discrete and not Gaussian().discrete
