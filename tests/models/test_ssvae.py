"""M2: its objective by hand, gradients, and what unlabelled samples add."""

import math

import pytest
import torch

from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.evaluate import evaluate
from vae_fast.models import build

SHAPE, CLASSES, N = (1, 2, 3), 3, 4
Y = torch.tensor([2, -1, 0, -1])


def tiny(**options):
    torch.manual_seed(0)
    return (
        build(
            "ssvae",
            SHAPE,
            latent_dim=2,
            hidden=3,
            network_options={"hidden": [4], "activation": "tanh"},
            condition_options={"num_classes": CLASSES},
            **options,
        )
        .double()
        .eval()
    )  # dropout draws noise of its own


def images():
    return torch.rand(N, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_objective_by_hand():
    """Kingma et al. 2014, equations 6 to 9, class by class."""
    model, key, x = tiny(alpha=5.0), noise.new_key(), images()
    eps = reference.normal(key, (CLASSES, N, 2), torch.float64)
    log_q = torch.log_softmax(model.classifier(model.encoder(x)), 1)
    recon, kl = torch.empty(CLASSES, N).double(), torch.empty(CLASSES, N).double()
    for k in range(CLASSES):
        one_hot = CLASSES**0.5 * torch.eye(CLASSES, dtype=torch.float64)[k].expand(N, CLASSES)
        mu, logvar = model.head(torch.cat([model.encoder(x), one_hot], 1)).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * eps[k]
        logits = model.decoder(torch.cat([z, one_hot], 1))
        p_x = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        recon[k] = -p_x.log_prob(x).flatten(1).sum(1)
        kl[k] = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1)
    bound = recon + math.log(CLASSES) + kl
    expected = torch.stack(
        [
            bound[2, 0] - 5.0 * log_q[0, 2],
            (log_q[1].exp() * (bound[:, 1] + log_q[1])).sum(),
            bound[0, 2] - 5.0 * log_q[2, 0],
            (log_q[3].exp() * (bound[:, 3] + log_q[3])).sum(),
        ]
    )
    out = model.loss(x, Y, reduction="none", noise_key=key)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.recon[0], recon[2, 0])
    torch.testing.assert_close(out.kl[0], kl[2, 0] + math.log(CLASSES))
    torch.testing.assert_close(model.loss(x, Y, noise_key=key).loss, expected.mean())
    unlabelled = model.loss(x, noise_key=key, reduction="none").loss
    torch.testing.assert_close(unlabelled[1::2], expected[1::2])


def test_gradients():
    model, key, x = tiny(), noise.new_key(), images()
    check_gradients(model, lambda: model(x, Y, noise_key=key).loss)


def test_weights_average_to_the_likelihood():
    """log p(x) = log sum_y p(y) p(x | y): more samples tighten the bound, up to one value."""
    model, x = tiny(), images()
    with torch.no_grad():
        few = model.weighted_samples(x, num_samples=2000).log_weight.mean(0)
        many, again = (
            torch.logsumexp(model.weighted_samples(x, num_samples=3000).log_weight, 0)
            - math.log(3000)
            for _ in range(2)
        )
        by_class = torch.stack(
            [
                torch.logsumexp(
                    model.weighted_samples(x, torch.full((N,), k), num_samples=3000).log_weight, 0
                )
                - math.log(3000)
                for k in range(CLASSES)
            ]
        )
    assert (few < many - 0.01).all()
    torch.testing.assert_close(many, again, rtol=0, atol=0.06)
    torch.testing.assert_close(
        many, torch.logsumexp(by_class, 0) - math.log(CLASSES), rtol=0, atol=0.06
    )


def test_a_few_labels_name_the_clusters():
    """Three patterns, one label each: the classifier learns the rest from unlabelled samples."""
    torch.manual_seed(0)
    model = build("ssvae", (1, 6, 6), latent_dim=2, hidden=32, network_options={"hidden": [64]},
                  condition_options={"num_classes": 3}, alpha=100.0)  # fmt: skip
    patterns = (torch.rand(3, 1, 6, 6) > 0.5).float()
    truth = torch.arange(300) % 3
    flips = torch.rand(300, 1, 6, 6) < 0.12
    x = (patterns[truth] - flips.float()).abs()
    y = torch.full((300,), -1)
    y[:3] = truth[:3]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(x, y).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (model.predict(x).argmax(1) == truth).float().mean() > 0.95
        again = model.reconstruct(x)
        said = model.diagnostics(x, truth)["accuracy"]
    assert torch.equal(said, (model.predict(x).argmax(1) == truth).float())
    assert model.diagnostics(x) == {} and again.shape == x.shape
    drawn = model.sample(3).detach()  # one per class, and each its own class's pattern
    assert ((drawn > 0.5).float() == patterns).float().flatten(1).mean(1).min() > 0.8


def test_refusals():
    with pytest.raises(ValueError, match="prior must be standard for ssvae.*cvae can learn it"):
        tiny(prior="learned")
    with pytest.raises(ValueError, match="free_bits"):
        tiny().loss(images(), Y, free_bits=0.5)
    with pytest.raises(ValueError, match=r"\(N, 3\), got \(4, 2\)"):
        tiny().encode(images(), torch.rand(4, 2))


def test_the_elbo_without_labels_is_the_objective_s():
    """Classes have a KL of their own: without it the bound could lie above log p(x)."""
    model, key, x = tiny(), noise.new_key(), images()
    expected = model.loss(x, reduction="none", noise_key=key)
    samples = model.weighted_samples(x, num_samples=1, noise_key=key)
    torch.testing.assert_close(samples.nll[0] + samples.kl, expected.loss)
    torch.testing.assert_close(samples.kl, expected.kl)


def test_unknown_labels_are_neither_right_nor_wrong():
    model, x = tiny(), images()
    shown = model.predict(x).argmax(1)
    y = torch.where(torch.tensor([True, False, True, False]), shown, -1)
    y[2] = (shown[2] + 1) % CLASSES
    assert model.diagnostics(x, y)["accuracy"].tolist() == [1.0, 0.0]
    assert evaluate(model, x, y, num_samples=0)["accuracy"] == 0.5
    assert "accuracy" not in evaluate(model, x, torch.full((N,), -1), num_samples=0)
    with pytest.raises(ValueError, match="2 of 4 labels are -1"):
        model.weighted_samples(x, y, num_samples=1)


def test_its_condition_is_labels():
    with pytest.raises(TypeError, match="condition is labels.*got Images"):
        build("ssvae", SHAPE, condition="left-half")
