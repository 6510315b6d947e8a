"""Evaluations that need labels or factors, compared with known values."""

import math

import pytest
import torch
from torch import nn

from vae_fast import evaluate as ev
from vae_fast.models import BetaVAE, Gaussian


class Fixed(nn.Linear):
    """A linear map with given weights."""

    def __init__(self, weight, bias=None):
        super().__init__(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.weight.copy_(weight)
            self.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)


def one_dimension_known(dimensions=2):
    """z = x's first dimension, E[x | z] = (z, 0): the second dimension is never reconstructed."""
    encoder = Fixed(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, -20.0]))
    decoder = Fixed(torch.tensor([[1.0], [0.0]]))
    return BetaVAE(encoder, decoder, input_shape=(2,), latent_dim=1, likelihood=Gaussian())


def test_auroc_of_the_reconstruction_counts_pairs_by_hand():
    """The error is the second dimension squared, and nothing else."""
    second = torch.tensor([0.1, -0.5, 0.3, -0.9, 0.2])
    labels = torch.tensor([0, 0, 7, 3, 3])
    x = torch.stack([torch.zeros(5), second], 1)
    found = ev.anomaly_auroc(one_dimension_known(), x, labels, normal=[0])
    # Anomalies 0.3, 0.9, 0.2 against normals 0.1, 0.5: 4 of the 6 pairs are in order.
    assert found["reconstruction"] == pytest.approx(4 / 6)
    assert set(found) == {"elbo", "nll", "reconstruction"}
    both = ev.anomaly_auroc(one_dimension_known(), x, labels, normal=[0, 7])
    # 0.9 and 0.2 against 0.1, 0.5, 0.3: 3 + 1 of 6.
    assert both["reconstruction"] == pytest.approx(4 / 6)
    only = ev.anomaly_auroc(one_dimension_known(), x, labels, normal=[3])
    assert only["reconstruction"] == pytest.approx((0 + 1 + 1) / 6)
    for normal in ([0, 3, 7], [5]):
        with pytest.raises(ValueError, match="needs normal samples and anomalies"):
            ev.anomaly_auroc(one_dimension_known(), x, labels, normal)


def test_few_labels_see_what_the_features_carry():
    """Classes that differ in the encoded dimension are separated; in the other dimension they
    cannot be."""
    torch.manual_seed(0)
    labels = torch.arange(300) % 2
    apart = labels * 2.0 - 1.0 + 0.1 * torch.randn(300)
    other = torch.randn(300)
    few = ev.few_per_class(labels, 4, seed=1)
    for x, low, high in ((torch.stack([apart, other], 1), 0.99, 1.0),
                         (torch.stack([other, apart], 1), 0.3, 0.7)):  # fmt: skip
        found = ev.few_label_accuracy(one_dimension_known(), (x[few], labels[few]), x, labels)
        assert low <= found <= high


def test_few_per_class_chooses_each_class_as_often():
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 2, 1])
    chosen = ev.few_per_class(labels, 2, seed=3)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2] and len(set(chosen.tolist())) == 6
    assert torch.equal(chosen, ev.few_per_class(labels, 2, seed=3))
    with pytest.raises(ValueError, match="class 0 has 3"):
        ev.few_per_class(labels, 4)


def every_combination():
    """Factors (120, 2) of 4 and 5 values, each combination 6 times."""
    return torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(6, 1)


def test_mig_of_a_hand_made_code():
    """z1 is the first factor, z2 its upper bit, z3 the second: gaps log 2 / log 4 and 1."""
    factors = every_combination()
    codes = torch.stack([factors[:, 0], factors[:, 0] // 2, factors[:, 1]], 1).double()
    expected = ((math.log(4) - math.log(2)) / math.log(4) + 1.0) / 2
    assert ev.mutual_information_gap(codes, factors) == pytest.approx(expected, abs=1e-12)
    # The same as a joint table: I(z2; f1) = log 2, I(z2; f2) = 0, since all combinations are there.
    from vae_fast.evaluate.disentanglement import entropy, mutual_information

    assert mutual_information(factors[:, 0] // 2, factors[:, 0]) == pytest.approx(math.log(2))
    assert mutual_information(factors[:, 0] // 2, factors[:, 1]) == pytest.approx(0.0, abs=1e-12)
    assert entropy(factors[:, 1]) == pytest.approx(math.log(5))


def test_factor_vae_score_of_codes():
    torch.manual_seed(0)
    factors = every_combination()
    aligned = factors.double() + 0.01 * torch.rand(120, 2)
    assert ev.factor_vae_score_of_codes(aligned, factors, votes=100) == 1.0
    assert ev.factor_vae_score_of_codes(aligned.flip(1), factors, votes=100) == 1.0
    # Noise says nothing of two factors: half the votes are right, up to chance.
    noise = torch.randn(120, 2)
    assert ev.factor_vae_score_of_codes(noise, factors, votes=400) < 0.75
    # A factor that doesn't vary is left out, and the other one is always guessed.
    factors[:, 1] = 3
    assert ev.factor_vae_score_of_codes(noise, factors, votes=20) == 1.0
    with pytest.raises(ValueError, match=r"no factor varies in these \d+ samples: take more"):
        ev.factor_vae_score_of_codes(noise, torch.zeros_like(factors))
