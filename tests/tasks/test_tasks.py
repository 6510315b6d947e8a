"""Every task, on models whose exact results are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from vae_fast import tasks
from vae_fast.evaluate import auroc, reconstruction_error
from vae_fast.models import BetaVAE, Gaussian, Laplace, Posterior, build


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(name="vae", shape=(1, 6, 6), **options):
    return build(name, shape, network_options={"hidden": [16]}, **options)


@pytest.fixture(scope="module")
def trained():
    """A VAE of bars: images with one white column each, brightness 0.7 to 1."""
    torch.manual_seed(0)
    model = small(latent_dim=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(800):
        optimizer.zero_grad()
        model(bars(64)[0]).loss.backward()
        optimizer.step()
    return model.eval()


def bars(n):
    column = torch.randint(0, 6, (n,))
    x = torch.zeros(n, 1, 6, 6)
    x[torch.arange(n), 0, :, column] = 0.7 + 0.3 * torch.rand(n, 1)
    return x, column


class Line(nn.Linear):
    """A linear decoder or encoder with given weights."""

    def __init__(self, weight, bias=0.0):
        super().__init__(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.fill_(bias)


def identity(dimensions=3):
    """x = z: latent values can be read from x."""
    eye = torch.eye(dimensions)
    encoder = Line(torch.cat([eye, torch.zeros(dimensions, dimensions)]))
    with torch.no_grad():
        encoder.bias[dimensions:] = -20.0
    return BetaVAE(encoder, Line(eye), input_shape=(dimensions,), latent_dim=dimensions,
               likelihood=Gaussian())  # fmt: skip


def test_generate():
    model = small("cvae")
    whole = tasks.generate(model, 25, torch.arange(25) % 10, seed=3, batch_size=25)
    torch.testing.assert_close(
        tasks.generate(model, 25, torch.arange(25) % 10, seed=3, batch_size=25), whole
    )
    assert whole.shape == (25, 1, 6, 6)
    assert not torch.equal(tasks.generate(model, 25, torch.arange(25) % 10, seed=4), whole)
    plain = identity()
    torch.testing.assert_close(tasks.generate(plain, 7, temperature=0.0), torch.zeros(7, 3))
    spread = tasks.generate(plain, 4000, temperature=0.5, seed=0, batch_size=999)
    assert spread.shape == (4000, 3)
    torch.testing.assert_close(spread.std(0), torch.full((3,), 0.5), rtol=0.06, atol=0.0)
    with pytest.raises(ValueError, match="n is 3, but y has 2 entries: they must be equal"):
        tasks.generate(model, 3, torch.tensor([0, 1]))


def test_encode_and_reconstruct(tmp_path):
    model, x = identity(), torch.randn(10, 3)
    codes = tasks.encode(model, x, path=tmp_path / "codes.npy", batch_size=4)
    torch.testing.assert_close(codes, x)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), codes.numpy())
    torch.testing.assert_close(tasks.reconstruct(model, x, batch_size=3), x)
    with pytest.raises(ValueError, match="doesn't exist"):
        tasks.encode(model, x, path=tmp_path / "nowhere" / "codes.npy")
    with pytest.raises(ValueError, match=r"\.npy"):
        tasks.encode(model, x, path=tmp_path / "codes.csv")


@pytest.mark.parametrize("score", ["elbo", "nll", "reconstruction"])
def test_anomalies_score_higher(trained, score):
    normal, _ = bars(200)
    strange = normal.transpose(2, 3)  # rows where there were columns
    scores = tasks.anomaly_scores(trained, torch.cat([normal, strange]), score=score)
    assert auroc(scores, torch.arange(400) >= 200) > 0.95
    threshold = tasks.anomaly_threshold(scores[:200], 0.95)
    assert 0.94 <= (scores[:200] <= threshold).float().mean() <= 0.96


def test_threshold_is_the_quantile():
    values = torch.rand(1001)
    assert tasks.anomaly_threshold(values, 0.3) == pytest.approx(float(values.quantile(0.3)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        tasks.anomaly_threshold(values, 95)
    with pytest.raises(ValueError, match="there are none"):
        tasks.anomaly_threshold(values[:0])
    values[7] = float("nan")  # sorted to the end, where lower quantiles do not see it
    with pytest.raises(ValueError, match="a score is NaN"):
        tasks.anomaly_threshold(values, 0.3)
    with pytest.raises(ValueError, match="must be one of"):
        tasks.anomaly_scores(small(), torch.rand(2, 1, 6, 6), score="likelihood")


def test_denoise(trained):
    clean, _ = bars(100)
    noisy = (clean + 0.3 * torch.randn_like(clean)).clamp(0, 1)
    better = tasks.denoise(trained, noisy)
    assert (better - clean).square().mean() < 0.5 * (noisy - clean).square().mean()
    twice = tasks.denoise(trained, noisy, steps=2)
    torch.testing.assert_close(twice, tasks.reconstruct(trained, better))


def test_impute_fills_gaps_and_keeps_the_rest(trained):
    x, _ = bars(60)
    known = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    known[..., :3, :] = True  # the upper half says which column it is
    junk = torch.where(known, x, torch.full_like(x, 0.5))
    found = tasks.impute(trained, junk, known, steps=10, draws=8)
    assert torch.equal(found.mean[..., :3, :], x[..., :3, :])
    assert not found.std[..., :3, :].any() and found.std[..., 3:, :].mean() > 0
    baseline = bars(2000)[0].mean(0)
    gap = slice(3, None)
    error = (found.mean - x)[..., gap, :].square().mean()
    assert error < 0.3 * (baseline - x)[..., gap, :].square().mean()
    nothing = torch.zeros_like(known)
    assert tasks.impute(trained, x, nothing, steps=10, draws=20).std.mean() > found.std.mean()
    in_bytes = tasks.impute(trained, (x * 255).round().to(torch.uint8), known, steps=2, draws=2)
    torch.testing.assert_close(in_bytes.mean[..., :3, :], x[..., :3, :], rtol=0, atol=1 / 255)
    with pytest.raises(TypeError, match="must be bool"):
        tasks.impute(trained, x, known.float())
    with pytest.raises(ValueError, match="broadcast"):
        tasks.impute(trained, x, known[..., :4])


@pytest.mark.parametrize("name", ["ae", "hvae", "cvae", "ssvae"])
def test_impute_with_other_models(name):
    options = {"hvae": {"width": 8, "levels": [[1, 1], [3, 1]]}}
    model = build(name, (1, 6, 6), **options.get(name, {"network_options": {"hidden": [8]}}))
    x, y = torch.rand(5, 1, 6, 6), (torch.arange(5) if name == "cvae" else None)
    known = torch.rand(5, 1, 6, 6) > 0.3
    found = tasks.impute(model, x, known, y, steps=2, draws=3, batch_size=2)
    assert torch.equal(found.mean[known], x[known]) and found.mean.isfinite().all()


def test_paths():
    start, end = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 4.0], [-1.0, 0.0]])
    straight = tasks.linear(start, end, 3)
    torch.testing.assert_close(straight[0], torch.tensor([[2.0, 0.0], [1.0, 2.0], [0.0, 4.0]]))
    arc = tasks.spherical(start, end, 3)
    half = 3.0 / math.sqrt(2.0)
    torch.testing.assert_close(arc[0], torch.tensor([[2.0, 0.0], [half, half], [0.0, 4.0]]))
    torch.testing.assert_close(arc[1], straight[1])  # opposite directions: straight through
    far = tasks.spherical(torch.randn(50, 100), torch.randn(50, 100), 9)
    assert (far.norm(dim=2) - 10).abs().max() < 3 and far.isfinite().all()
    with pytest.raises(ValueError, match="at least 2"):
        tasks.linear(start, end, 1)


def test_interpolate_decodes_points_between_codes():
    model = identity()
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(
        tasks.interpolate(model, a, b, steps=5, path="linear"), tasks.linear(a, b, 5)
    )
    torch.testing.assert_close(tasks.interpolate(model, a, b, steps=5), tasks.spherical(a, b, 5))
    conditional = small("cvae")
    x = torch.rand(2, 1, 6, 6)
    walk = tasks.interpolate(conditional, x, x.flip(0), torch.tensor([3, 4]), steps=4)
    assert walk.shape == (2, 4, 1, 6, 6)
    with pytest.raises(ValueError, match="linear or spherical"):
        tasks.interpolate(model, a, b, path="slerp")


def test_traverse_moves_one_dimension_at_a_time():
    model, z = identity(), torch.tensor([0.1, 0.2, 0.3])
    walk = tasks.traverse(model, z, dimensions=[2, 0], values=[-1.0, 5.0])
    expected = torch.tensor(
        [[[0.1, 0.2, -1.0], [0.1, 0.2, 5.0]], [[-1.0, 0.2, 0.3], [5.0, 0.2, 0.3]]]
    )
    torch.testing.assert_close(walk, expected)
    order = torch.tensor([1.0, 0.5, 2.0]).argsort(descending=True)[:2]  # 2 and 0
    assert torch.equal(tasks.traverse(model, z, dimensions=order, values=[-1.0, 5.0]), walk)
    with pytest.raises(ValueError, match=r"not \[3\]"):
        tasks.traverse(model, z, dimensions=[3])


def test_attribute_vectors():
    model, x = identity(), torch.randn(200, 3)
    has = torch.arange(200) % 2 == 0
    x[has] += torch.tensor([2.0, 0.0, -1.0])
    codes = tasks.encode(model, x)
    vector = tasks.attribute_vector(codes, has)
    torch.testing.assert_close(vector, x[has].mean(0) - x[~has].mean(0))
    torch.testing.assert_close(tasks.apply_attribute(model, x[:5], vector, -0.5),
                               x[:5] - 0.5 * vector)  # fmt: skip
    with pytest.raises(ValueError, match="with it and samples without"):
        tasks.attribute_vector(codes, torch.ones(200, dtype=torch.bool))


def test_compression_counts_its_bits():
    model, x = identity(1), torch.randn(20000, 1)
    packed = tasks.compress(model, x, step=0.25)
    again = tasks.decompress(model, packed)
    assert (again - x).abs().max() <= 0.125 + 1e-6
    # The entropy of N(0, 1) on a grid: h - log2(step).
    entropy = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(0.25)
    assert float(packed.bits.mean()) == pytest.approx(entropy, abs=0.03)
    coarse = tasks.compress(model, x, step=1.0)
    assert coarse.bits.mean() < packed.bits.mean() - 1.8
    # The probabilities of all symbols add up to one.
    symbols = torch.arange(-40.0, 41.0).unsqueeze(1) * 0.25
    assert float((2.0 ** -tasks.compress(model, symbols).bits).sum()) == pytest.approx(1.0)
    assert tasks.compress(model, torch.tensor([[30.0]])).bits.isfinite().all()
    with pytest.raises(ValueError, match="16 bits"):
        tasks.compress(model, x * 1e6)


def test_linear_probe():
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]])
    labels = torch.arange(300) % 3
    features = centres[labels] + torch.randn(300, 2)
    probe = tasks.linear_probe(features[:30], labels[:30])
    probabilities = probe(features)
    assert (probabilities.argmax(1) == labels).float().mean() > 0.93
    torch.testing.assert_close(probabilities.sum(1), torch.ones(300))
    rescaled = tasks.linear_probe(features[:30] * 100 + 7, labels[:30])
    torch.testing.assert_close(rescaled(features * 100 + 7), probabilities, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="negative"):
        tasks.linear_probe(features, labels - 1)
    with pytest.raises(ValueError, match="out of range for num_classes=2"):
        tasks.linear_probe(features, labels, 2)


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    from vae_fast.tasks import pictures

    x = torch.rand(4, 1, 6, 6)
    pictures.draw_strips(tmp_path / "strips.png", [x, (x * 255).to(torch.uint8)], "before, after")
    pictures.draw_grid(tmp_path / "grid.png", torch.rand(2, 3, 3, 6, 6), "walks")
    codes, labels = torch.randn(50, 5), torch.arange(50) % 3
    pictures.draw_latent_map(tmp_path / "map.png", codes, labels, names=["a", "b", "c"])
    pictures.draw_latent_map(tmp_path / "plain.png", codes[:, :2])
    pictures.draw_score_histogram(
        tmp_path / "scores.png", torch.randn(100), torch.randn(100) + 3, threshold=2.0
    )
    for name in ("strips", "grid", "map", "plain", "scores"):
        pixels = np.asarray(image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.std() > 5, name
    with pytest.raises(ValueError, match="one shape"):
        pictures.draw_strips(tmp_path / "no.png", [x, x[:2]], "")


class TwoSides(BetaVAE):
    """x = (z, z) + 0.6 N(0, 1), with its true posterior."""

    def __init__(self):
        super().__init__(
            Line(torch.zeros(2, 2)), Line(torch.ones(2, 1)), input_shape=(2,), latent_dim=1,
            likelihood=Gaussian(scale=0.6),
        )  # fmt: skip

    def encode(self, x):
        variance = 1.0 / (1.0 + 2.0 / 0.36)
        mu = variance * x.sum(1, keepdim=True) / 0.36
        return Posterior(mu, torch.full_like(mu, math.log(variance)))


def test_chains_of_draws_have_the_missing_values_own_distribution():
    x, known = torch.tensor([[0.8, 0.0]]), torch.tensor([[True, False]])
    # x is N(0, C) with 1.36 on the diagonal and 1 beside it.
    mean, std = 0.8 / 1.36, (1.36 - 1.0 / 1.36) ** 0.5
    found = tasks.impute(TwoSides(), x, known, steps=50, draws=8000, from_means=False)
    assert found.mean[0, 1].item() == pytest.approx(mean, abs=0.02)
    assert found.std[0, 1].item() == pytest.approx(std, abs=0.02)
    narrower = tasks.impute(TwoSides(), x, known, steps=50, draws=8000)
    assert narrower.mean[0, 1].item() == pytest.approx(mean, abs=0.02)
    assert narrower.std[0, 1].item() < 0.6 * std


def test_classes_of_pixels_are_fed_back_as_pixels():
    model = build("vae", (1, 4, 4), likelihood="categorical", network_options={"hidden": [8]})
    x = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    made = model.reconstruct(x)
    assert made.max() > 1 and made.dtype == torch.int64
    expected = (x.float() / 255 - made.float() / 255).square().mean((1, 2, 3))
    torch.testing.assert_close(reconstruction_error(model, x), expected)
    known = torch.zeros(1, 4, 4, dtype=torch.bool)
    for from_means in (True, False):
        filled = tasks.impute(model, x, known, steps=2, draws=2, from_means=from_means)
        assert filled.mean.max() <= 1.0 and filled.std.max() <= 0.5
    twice = model.reconstruct(made.to(torch.uint8))
    assert torch.equal(tasks.denoise(model, x, steps=2), twice)


def test_default_labels_continue_over_batches():
    model = small("cvae", (1, 4, 4)).eval()
    seen = []
    model.condition.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    assert tasks.generate(model, 13, batch_size=4).shape == (13, 1, 4, 4)
    assert torch.cat(seen).tolist() == [*range(10), 0, 1, 2]


def test_codes_of_a_conditional_model_need_its_condition():
    with pytest.raises(ValueError, match="CVAE is conditional.*give y"):
        tasks.interpolate(small("cvae", condition="left-half"), *torch.rand(2, 2, 1, 6, 6))


def test_compression_under_a_learned_prior():
    model = small("cvae", prior="learned", latent_dim=2)
    x, y = torch.rand(20, 1, 6, 6), torch.arange(20) % 10
    with torch.no_grad():
        p = model.prior(y)
    packed = tasks.compress(model, x, y, step=0.1)
    p = torch.distributions.Normal(p.mu.double(), torch.exp(0.5 * p.logvar.double()))
    z = packed.symbols.double() * 0.1
    mass = p.cdf(z + 0.05) - p.cdf(z - 0.05)
    torch.testing.assert_close(packed.bits, -torch.log2(mass).sum(1))


def test_modules_keep_their_own_modes():
    model = small()
    model.train()
    model.encoder.eval()
    tasks.encode(model, torch.rand(2, 1, 6, 6))
    assert model.training and model.decoder.training and not model.encoder.training


def test_arcs_between_nearly_opposite_directions():
    start = torch.tensor([[1.0, 0.0]])
    for angle in (3e-4, 1e-3, 1e-2):
        turned = torch.tensor(math.pi - angle)
        end = torch.stack([turned.cos(), turned.sin()]).unsqueeze(0)
        assert (tasks.spherical(start, end, 9).norm(dim=2) - 1.0).abs().max() < 1e-3, angle


def test_laplace_draws_are_finite(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.zeros(shape, dtype=kw["dtype"]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        drawn = Laplace(2.0).sample(torch.zeros(3, dtype=dtype))
        assert drawn.isfinite().all() and (drawn < -20.0).all() and drawn.dtype == dtype
