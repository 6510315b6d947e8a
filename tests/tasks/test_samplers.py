"""Samplers: densities against closed forms, and draws that match the codes they were fitted to."""

import math

import pytest
import torch

from vae_fast.cli import main
from vae_fast.cli.show import SAMPLERS as FLAGS
from vae_fast.models import build
from vae_fast.tasks import SAMPLERS, fit_sampler, generate
from vae_fast.tasks.samplers.kept import kept_sampler
from vae_fast.tasks.samplers.learned import CodeSampler, FlowSampler, SecondStage
from vae_fast.tasks.samplers.metric import MetricSampler
from vae_fast.tasks.samplers.mixture import GaussianMixture
from vae_fast.tasks.samplers.pixelcnn import PixelCNN


def two_blobs(n=2000):
    torch.manual_seed(0)
    z = 0.3 * torch.randn(n, 2)
    z[:, 1] += 0.8 * z[:, 0]
    return z + torch.where(torch.arange(n)[:, None] % 4 == 0, -2.0, 1.0)


def test_a_mixture_finds_two_blobs():
    z = two_blobs()
    found = GaussianMixture(2, components=2).fit(z)
    order = found.mu[:, 0].argsort()
    torch.testing.assert_close(
        found.weights[order], torch.tensor([0.25, 0.75]).double(), atol=0.01, rtol=0
    )
    for part, k in ((z[::4], order[0]), (z[torch.arange(len(z)) % 4 != 0], order[1])):
        torch.testing.assert_close(found.mu[k], part.double().mean(0), atol=0.01, rtol=0)
        covariance = found.factors[k] @ found.factors[k].t()
        torch.testing.assert_close(
            covariance, torch.cov(part.double().t(), correction=0), atol=5e-3, rtol=0
        )
    density = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(found.weights),
        torch.distributions.MultivariateNormal(found.mu, scale_tril=found.factors),
    )
    torch.testing.assert_close(found.log_density(z), density.log_prob(z.double()))
    assert found.log_likelihood == pytest.approx(float(found.log_density(z).mean()))
    one = GaussianMixture(2, components=1).fit(z)
    assert one.log_likelihood < found.log_likelihood - 0.5


@pytest.mark.parametrize("kind", [GaussianMixture, FlowSampler, SecondStage])
def test_draws_are_like_the_codes(kind):
    z = two_blobs()
    steps = {} if kind is GaussianMixture else {"steps": 300, "lr": 3e-3}
    if kind is SecondStage:
        steps = {"steps": 400, "lr": 1e-2, "hidden": 64}
    made = kind(2, **steps).fit(z).draw(4000).float().detach()
    truth = GaussianMixture(2, components=2).fit(z)
    assert abs((made[:, 0] < -0.5).float().mean() - 0.25) < 0.08
    assert truth.log_density(made).mean() > truth.log_likelihood - (
        4 if kind is SecondStage else 0.8
    )
    torch.testing.assert_close(made.mean(0), z.mean(0), atol=0.25, rtol=0)


def test_a_pixelcnn_sees_only_earlier_positions():
    torch.manual_seed(0)
    network = PixelCNN((4, 3), (3, 3), channels=8, layers=2).double()
    codes = torch.stack([torch.randint(4, (1, 3, 3)), torch.randint(3, (1, 3, 3))], -1)

    def logits(codes):
        h = network.features_before(codes)
        return [network.logits(h, codes, c) for c in range(2)]

    before = logits(codes)
    for place in range(9):
        for c in range(2):
            other = codes.clone()
            other[0, place // 3, place % 3, c] = (other[0, place // 3, place % 3, c] + 1) % 3
            for k, (a, b) in enumerate(zip(before, logits(other), strict=True)):
                moved = (a != b).any(-1).flatten().nonzero().flatten().tolist()
                assert all(at > place or (at == place and k > c) for at in moved), (place, c, k)
    each = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2, 1)
    small = PixelCNN((2,), (2, 2), channels=8, layers=2).double()
    assert small.nll(each).neg().exp().sum().item() == pytest.approx(1.0)


def test_a_code_sampler_learns_joint_codes():
    torch.manual_seed(0)
    first = torch.randint(5, (400, 1, 1))
    codes = ((first + torch.arange(4).view(1, 2, 2)) % 5).unsqueeze(-1)
    sampler = CodeSampler((2, 2, 1), (5,), steps=150, channels=16, layers=2, lr=1e-2).fit(codes)
    assert sampler.losses[-1] < math.log(5) + 0.15 < 4 * math.log(5)
    made = sampler.draw(200)
    right = (made == (made[:, :1, :1] + torch.arange(4).view(1, 2, 2, 1)) % 5).flatten(1).all(1)
    assert right.float().mean() > 0.9
    assert len(made[:, 0, 0].unique()) == 5


def test_models_are_sampled():
    torch.manual_seed(0)
    x = torch.rand(40, 1, 4, 4)
    small = {"network_options": {"hidden": [8]}}
    for name, options, sampler in (
        ("vae", {}, "normal"),
        ("vae", {"posterior": "vmf"}, "gmm"),
        ("ae", {}, "gmm"),
        ("cvae", {}, "flow"),
        ("vae", {"objective": "riemannian", "latent_dim": 3}, "metric"),
        ("vae", {"latent_dim": 3}, "iaf"),
        ("vq-vae", {"network": "mlp"}, "pixelcnn"),
    ):
        model = build(name, (1, 4, 4), **small, **options)
        y = torch.arange(40) % 10 if name == "cvae" else None
        steps = {"steps": 3} if sampler in ("flow", "iaf", "pixelcnn") else {}
        fitted = fit_sampler(sampler, model, x, y, seed=1, **steps)
        made = [generate(model, 5, seed=2, sampler=fitted) for _ in range(2)]
        assert made[0].shape == (5, 1, 4, 4) and torch.equal(*made)
    assert FLAGS == SAMPLERS
    with pytest.raises(ValueError, match="VAE is no vq-vae"):
        fit_sampler("pixelcnn", build("vae", (1, 4, 4), **small), x)
    with pytest.raises(ValueError, match="use pixelcnn or prior"):
        fit_sampler("gmm", model, x)
    with pytest.raises(ValueError, match="sampler must be one of prior"):
        fit_sampler("hmc", model, x)


def test_the_command(tmp_path, monkeypatch, capsys):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8))
    common = ["--data", "small.npy", "--epochs", "1", "--device", "cpu", "--out", "out"]
    assert main(["train", *common, "--model-args.latent_dim", "3"]) == 0
    out = ["--n", "4", "--sampler", "gmm", "--sampler-data", "50", "--out", "s.npy"]
    assert main(["sample", "out", *out]) == 0
    first = np.load("s.npy")
    assert first.shape == (4, 1, 8, 8) and "was fitted, and is kept in" in capsys.readouterr().out
    # Kept in the run: what is read again draws the same, and is not fitted again.
    with monkeypatch.context() as unable:
        unable.setattr(GaussianMixture, "fit", None)
        assert main(["sample", "out", *out]) == 0
    assert np.array_equal(np.load("s.npy"), first) and "is the one of" in capsys.readouterr().out
    out[5] = "60"  # of other samples, or of a file that is cut, it is fitted again
    assert main(["sample", "out", *out]) == 0 and "fitted again" in capsys.readouterr().out
    (path,) = (tmp_path / "out" / "samplers").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    assert main(["sample", "out", *out]) == 0 and "fitted again" in capsys.readouterr().out
    assert main(["sample", "out", "--sampler", "pixelcnn"]) == 1


@pytest.mark.parametrize("name", ["flow", "second-stage", "pixelcnn"])
def test_a_kept_sampler_draws_as_the_fitted_one(name, tmp_path):
    torch.manual_seed(0)
    x, kind = torch.rand(40, 1, 4, 4), "vq-vae" if name == "pixelcnn" else "vae"
    model = build(kind, (1, 4, 4), network="mlp", network_options={"hidden": [8]})
    options = {"model": model, "fitted_to": {"data": "x"}, "steps": 2}
    given = {"fit": lambda: fit_sampler(name, model, x, seed=1, steps=2)}
    fitted = kept_sampler(tmp_path, name, **options, **given)
    read = kept_sampler(tmp_path, name, **options, fit=lambda: pytest.fail("fitted again"))
    assert torch.equal(*(generate(model, 5, seed=2, sampler=s) for s in (fitted, read)))
    with torch.no_grad():
        next(model.parameters()).add_(1.0)  # of other weights, other codes
    lines = []
    kept_sampler(tmp_path, name, **options, **given, say=lines.append)
    assert "fitted again" in lines[0]


def test_the_metrics_draws_lie_where_its_volume_is():
    """One centre in one dimension: the density is that of numbers on a grid."""
    model = build(
        "vae", (1, 4, 4), latent_dim=1, objective="riemannian", objective_options={"anchors": 1}
    )
    objective = model.objective
    objective.centers[0], objective.matrices[0], objective.floor = 1.0, 2.0, 0.2
    torch.manual_seed(0)
    sampler = MetricSampler(objective.double(), proposals=60, leaps=10, step=0.3)
    # The tails' density is flat (floor), so draws are held to where chains that start at 1 get.
    z = sampler.draw(2000)[:, 0]
    grid = torch.linspace(-1.5, 3.5, 400, dtype=torch.float64)
    inside = z[(z > -1.5) & (z < 3.5)]
    p = (2.0 * torch.exp(-((grid - 1) ** 2) / 1.5**2) + 0.2).sqrt()
    wanted = (p * (grid - 1).abs()).sum() / p.sum()
    assert abs((inside - 1).abs().mean() - wanted) < 0.1
    at = z[:5, None].clone().requires_grad_()
    slope = torch.autograd.grad(sampler.log_density(at).sum(), at)[0]
    found = sampler.metric.slope(at, None, sampler.metric.inverse(at))
    torch.testing.assert_close(found, -slope)
