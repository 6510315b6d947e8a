"""DCI, SAP and modularity, Frechet distance, precision and recall: known answers."""

import json
import math
from functools import partial

import pytest
import torch

from vae_fast.evaluate import (
    accuracy,
    active_units,
    auroc,
    dci,
    factor_vae_score_of_codes,
    frechet_distance,
    modularity,
    mutual_information_gap,
    network_features,
    precision_recall,
    sap,
)
from vae_fast.evaluate.factors import dci_of_importance, lasso
from vae_fast.tasks import generate


def grid():
    """Two factors of 5 and 4 values, 40 times each pair, in random order."""
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(4)).repeat(40, 1)
    return pairs[torch.randperm(800, generator=torch.Generator().manual_seed(0))]


def test_factors_apart_and_mixed():
    v = grid()
    z = v.double()
    apart = torch.stack([2 * z[:, 0] + 1, -z[:, 1], torch.zeros(800)], 1)
    found = dci(apart, v)
    assert found == pytest.approx((1.0, 1.0, 1.0), abs=2e-3)
    assert sap(apart, v) == pytest.approx(1.0)
    assert modularity(apart, v) == pytest.approx(2 / 3)  # the third says nothing
    assert modularity(apart[:, :2], v) == pytest.approx(1.0)
    a, b = (z[:, i] - z[:, i].mean() for i in (0, 1))
    a, b = a / a.std(correction=0), b / b.std(correction=0)
    turned = torch.stack([a + b, a - b], 1)
    assert sap(turned, v) == pytest.approx(0.0, abs=1e-9)
    mixed = dci(turned, v)
    assert mixed.disentanglement < 1e-3 and mixed.completeness < 1e-3
    assert mixed.informativeness > 0.99
    assert modularity(turned, v) < 0.6
    # Half and half: R^2 of a with 3 a + b is 0.9, of b 0.1.
    assert sap(torch.stack([3 * a + b, 0 * a], 1), v) == pytest.approx(0.5)


def test_dci_by_entropies():
    importance = torch.tensor([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    second = -(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)) / math.log(3)
    wanted = (4 / 6 * (1 - h) + 2 / 6, (1 + 1 - second) / 2)
    assert dci_of_importance(importance) == pytest.approx(wanted)
    z = torch.linalg.qr(torch.randn(50, 3, dtype=torch.float64))[0] * 50**0.5
    v = torch.randn(50, 2, dtype=torch.float64)
    plain = z.t() @ v / 50  # of columns at right angles: thresholds
    wanted = plain.sign() * (plain.abs() - 0.1).clamp_min(0)
    torch.testing.assert_close(lasso(z, v, 0.1), wanted)


def test_frechet_distance_of_gaussians():
    """Equal to the formula with eigenvalues of the product, and 0 for equal samples."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 4, dtype=torch.float64, generator=generator)
    b = 1 + a[:300].flip(1) @ torch.randn(4, 4, dtype=torch.float64, generator=generator)
    product = torch.cov(a.t()) @ torch.cov(b.t())
    root = torch.linalg.eigvals(product).sqrt().real.sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum()
    wanted = wanted + torch.cov(a.t()).trace() + torch.cov(b.t()).trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(wanted))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(36.0)
    with pytest.raises(ValueError, match="with one F"):
        frechet_distance(a, b[:, :3])


def test_precision_and_recall():
    """Data in two blobs; samples in one of them, and somewhere else."""
    generator = torch.Generator().manual_seed(0)
    blob = torch.randn(400, 2, dtype=torch.float64, generator=generator)
    real = torch.cat([blob[:200], blob[200:] + 100])
    made = torch.cat(
        [torch.randn(150, 2, dtype=torch.float64, generator=generator), blob[:50] - 100]
    )
    found = precision_recall(real, made)
    assert found.precision == pytest.approx(0.75, abs=0.05) and found.recall == pytest.approx(
        0.5, abs=0.05
    )
    assert precision_recall(real, real) == (1.0, 1.0)
    # By hand: of points on a line with k = 1, radii are 1, 1, 3.
    line = torch.tensor([[0.0], [1.0], [4.0]]).double()
    assert precision_recall(
        line, torch.tensor([[-0.5], [2.5], [7.5]]).double(), k=1
    ).precision == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="k must be below the numbers of samples, 3 and 3"):
        precision_recall(line, line, k=3)


def test_features_of_a_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())
    x = torch.rand(7, 1, 5, 5)
    found = network_features(network, x, batch_size=3)
    torch.testing.assert_close(found.float(), network(x).flatten(1).detach())


def test_samples_are_measured_on_the_command_line(tmp_path, monkeypatch, capsys):
    """Over a run's codes, and over a network by its import path: what the functions give."""
    import numpy as np

    from vae_fast.cli import main
    from vae_fast.evaluate.generated import feature_network, of_samples
    from vae_fast.tasks import load_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8))
    common = ["--data", "small.npy", "--epochs", "1", "--device", "cpu", "--out", "run"]
    assert main(["train", *common, "--model-args.latent_dim", "3"]) == 0
    options = ["--n", "20", "--num-samples", "0", "--device", "cpu", "--features"]
    assert main(["evaluate", "run", *options, "run"]) == 0
    printed = capsys.readouterr().out
    assert "frechet_distance" in printed and "recall" in printed
    assert main(["evaluate", "run", *options, "torch.nn:Identity"]) == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    model = load_model("run", device="cpu").model
    x = torch.from_numpy(np.load("small.npy"))[:, None]
    network = feature_network("torch.nn:Identity", "cpu")
    assert network(x) is x
    found = of_samples(model, network, x[:20])
    assert set(found) <= set(report) and all(math.isfinite(v) for v in found.values())
    made = generate(model, 20, seed=0)
    wanted = frechet_distance((x[:20] / 255.0).flatten(1), made.flatten(1))
    assert found["frechet_distance"] == pytest.approx(wanted, rel=1e-3)
    assert main(["evaluate", "run", *options, "nowhere"]) == 1
    assert "neither" in capsys.readouterr().err


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_number_is_not_scored_where_it_is_none(bad):
    """Bins, sorting and argmax would give a score all the same."""
    torch.manual_seed(0)
    codes, factors = torch.randn(50, 4), torch.randint(0, 3, (50, 3))
    broken = codes.clone()
    broken[3, 1] = bad
    scores = (
        mutual_information_gap, dci, sap, modularity, partial(factor_vae_score_of_codes, votes=4)
    )  # fmt: skip
    for score in scores:
        assert 0 <= torch.tensor(score(codes, factors)).min()
        words = "codes hold NaN or infinity in 1 of 50 rows, the first of them 3"
        with pytest.raises(ValueError, match=words):
            score(broken, factors)
        with pytest.raises(ValueError, match="numbered from 0, got -1"):
            score(codes, factors - 1)
        with pytest.raises(ValueError, match="no codes"):
            score(codes[:0], factors[:0])
    for distance in (frechet_distance, precision_recall):
        with pytest.raises(ValueError, match="features of the data hold NaN or infinity"):
            distance(broken, codes)
        with pytest.raises(ValueError, match="features of the made samples hold NaN or infinity"):
            distance(codes, broken)
    with pytest.raises(ValueError, match="means hold NaN or infinity"):
        active_units(broken)


def test_options_that_no_score_has_are_named():
    codes, factors = torch.randn(50, 4), torch.randint(0, 3, (50, 3))
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        mutual_information_gap(codes, factors, bins=1)
    with pytest.raises(TypeError, match="bins must be a whole number, got 2.5"):
        modularity(codes, factors, bins=2.5)
    for penalty in (-1.0, NAN):
        with pytest.raises(ValueError, match="penalty can't be negative"):
            dci(codes, factors, penalty=penalty)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        precision_recall(codes, codes, k=0)
    with pytest.raises(ValueError, match="two factors that vary"):
        modularity(codes, factors[:, :1])
    with pytest.raises(ValueError, match="probability is NaN"):
        accuracy(torch.tensor([[NAN, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="a score is NaN"):
        auroc(torch.tensor([1.0, NAN]), torch.tensor([True, False]))
