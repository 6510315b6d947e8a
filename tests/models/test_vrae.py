"""Sequences: the bound by hand, padding that changes nothing, and text generated from z."""

import math

import pytest
import torch

from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.evaluate import evaluate
from vae_fast.models import build

TOKENS = {"likelihood_options": {"num_classes": 5}, "embedding": 3}


def tiny(shape, **options):
    torch.manual_seed(0)
    model = build("vrae", shape, latent_dim=2, hidden=4, **options).double()
    return model.eval()  # word dropout draws noise of its own


def series(n=3, t=6):
    return torch.randn(n, t, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_loss_by_hand():
    model, key, x = tiny((6, 2)), noise.new_key(), series()
    states, _ = model.encoder.gru(x)
    mu, logvar = model.head(states[:, -1]).chunk(2, 1)
    z = mu + torch.exp(0.5 * logvar) * reference.normal(key, (3, 2), torch.float64)
    state = torch.tanh(model.decoder.first_state(z)).unsqueeze(0)
    recon = 0.0
    for t in range(6):
        previous = x[:, t - 1] if t > 0 else torch.zeros(3, 2, dtype=torch.float64)
        h, state = model.decoder.gru(torch.cat([previous, z], 1).unsqueeze(1), state)
        p = torch.distributions.Normal(model.decoder.output(h[:, 0]), 1.0)
        recon = recon - p.log_prob(x[:, t]).sum(1)
    kl = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1)
    out = model.loss(x, beta=2.0, reduction="none", noise_key=key)
    torch.testing.assert_close(out.recon, recon)
    torch.testing.assert_close(out.kl, kl)
    torch.testing.assert_close(out.loss, recon + 2.0 * kl)


@pytest.mark.parametrize(
    ("shape", "options", "x"),
    [
        ((6, 2), {}, series()),
        ((6,), TOKENS, torch.randint(0, 5, (3, 6))),
        ((1, 4, 3), {}, torch.randint(0, 256, (3, 1, 4, 3), dtype=torch.uint8)),
        ((2, 4, 3), {"likelihood": "gaussian", "likelihood_options": {"variance": "learned"}},
         torch.rand(3, 2, 4, 3, dtype=torch.float64)),
    ],
)  # fmt: skip
def test_gradients_and_shapes(shape, options, x):
    model, key = tiny(shape, **options), noise.new_key()
    check_gradients(model, lambda: model(x, noise_key=key).loss)
    with torch.no_grad():
        assert model.reconstruct(x).shape == x.shape
        assert model.sample(2).shape == model.sample(2, draw=True).shape == (2, *shape)


@pytest.mark.parametrize("how", ["lengths", "padding"])
@pytest.mark.parametrize("kind", ["series", "tokens"])
def test_padding_changes_nothing(kind, how):
    """Each padded sequence has the loss and gradients that it has alone, whatever the padding."""
    lengths = torch.tensor([6, 3, 1, 4])
    if kind == "series":
        x, pad, junk = series(4), math.nan, 7.0
        model = tiny((6, 2), padding=pad if how == "padding" else None)
    else:
        x, pad, junk = torch.randint(0, 4, (4, 6)), 4, 2
        model = tiny((6,), padding=pad if how == "padding" else None, **TOKENS)
    x = x.clone()
    for row, length in zip(x, lengths, strict=True):
        row[length:] = pad if how == "padding" else junk
    given = {} if how == "padding" else {"lengths": lengths}
    zero = {"noise_key": noise.new_key()}

    q = model.encode(x, **given)
    out = model.loss(x, reduction="none", **given, **zero)
    eps = reference.normal(zero["noise_key"], (4, 2), torch.float64)
    model.zero_grad()
    out.loss.sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for i, length in enumerate(lengths):
        alone = x[i : i + 1, :length]
        q_alone = model.encode(alone)
        torch.testing.assert_close(q_alone.mu[0], q.mu[i])
        steps, n = model.to_steps(alone)
        z = q_alone.mu + torch.exp(0.5 * q_alone.logvar) * eps[i : i + 1]
        recon = model._nll(steps, n, z)
        torch.testing.assert_close(recon[0], out.recon[i])
        kl = 0.5 * (q_alone.logvar.exp() + q_alone.mu**2 - 1 - q_alone.logvar).sum()
        torch.testing.assert_close(kl, out.kl[i])
        (recon.sum() + kl).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, together[name], msg=name)


def test_any_length_at_once_and_none_at_all():
    model = tiny((6, 2), padding=math.nan)
    assert model.loss(series(t=9)).loss.isfinite()
    empty = torch.full((2, 3, 2), math.nan, dtype=torch.float64)
    out = model.loss(empty)
    assert out.recon == 0.0 and out.kl.isfinite()
    assert model.sample(2, length=11).shape == (2, 11, 2)


def test_word_dropout_hides_steps_in_training_only():
    x, key = series(), noise.new_key()
    model = tiny((6, 2), word_dropout=0.5)
    evaluated = [model.eval().loss(x, noise_key=key).recon for _ in range(2)]
    assert evaluated[0] == evaluated[1]
    assert model.train().loss(x, noise_key=key).recon != evaluated[0]
    never = tiny((6, 2), word_dropout=1.0)
    shuffled = x[:, [0, 1, 3, 2, 4, 5]]
    z = torch.zeros(3, 2, dtype=torch.float64)
    # With no history, p(x | z) is a product over steps: one step's value moves only its own term.
    lengths = torch.full((3,), 6)
    difference = never._nll(x, lengths, z) - never._nll(shuffled, lengths, z)
    params = never.decode(z)[:, 2:4]
    expected = 0.5 * ((x[:, 2:4] - params) ** 2 - (shuffled[:, 2:4] - params) ** 2).sum((1, 2))
    torch.testing.assert_close(difference, expected)


def test_conditional_text():
    """Two 'languages', aaaa.. and abab..: the label decides which is written."""
    torch.manual_seed(0)
    model = build(
        "vrae",
        (8,),
        latent_dim=2,
        hidden=16,
        condition="labels",
        condition_options={"num_classes": 2},
        likelihood_options={"num_classes": 3},
    )
    y = torch.arange(32) % 2
    x = torch.where(y.unsqueeze(1) == 1, torch.arange(8) % 2, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(x, y).loss.backward()
        optimizer.step()
    model.eval()
    assert torch.equal(model.sample(4), x[:4])
    drawn = model.sample(4, torch.ones(4, dtype=torch.int64), draw=True)
    assert (drawn == x[1]).float().mean() > 0.8
    assert torch.equal(model.reconstruct(x[:2], y[:2]), x[:2])


def test_weights_average_to_the_elbo():
    model, x = tiny((6, 2)), series(1).repeat(400, 1, 1)
    with torch.no_grad():
        out = model.loss(x, reduction="none")
        samples = model.weighted_samples(x, num_samples=5)
    torch.testing.assert_close(-samples.log_weight.mean(), out.loss.mean(), rtol=0.02, atol=0.0)
    torch.testing.assert_close(samples.kl, out.kl)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tiny((6, 2), word_dropout=1.5), "word_dropout must be between 0 and 1"),
        (lambda: tiny((6, 2)).loss(torch.zeros(3, 6, 4)), r"\(3, 6, 4\).*\(N, 6, 2\)"),
        (lambda: tiny((6, 2)).loss(series(), lengths=torch.ones(2)), r"lengths must be \(3,\)"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_likelihood_at_a_code_and_the_error_leave_padding_out():
    model, x = tiny((6, 2), padding=math.nan), series()
    padded = x.clone()
    padded[1, 4:] = math.nan
    z = torch.randn(3, 2, dtype=torch.float64)
    alone = [x[:1], x[1:2, :4], x[2:]]
    expected = torch.cat([model.nll_at(part, z[i : i + 1]) for i, part in enumerate(alone)])
    torch.testing.assert_close(model.nll_at(padded, z), expected)
    steps, lengths = model.to_steps(x[:1])
    torch.testing.assert_close(expected[:1], model._nll(steps, lengths, z[:1]))
    errors = torch.cat([model.squared_error(part) for part in alone])
    by_hand = (x[:1] - model.reconstruct(x[:1])).square().mean((1, 2))
    torch.testing.assert_close(errors[:1], by_hand)
    torch.testing.assert_close(model.squared_error(padded), errors)
    assert model.values_per_sample(padded) == 2 * (6 + 4 + 6) / 3
    report = evaluate(model, padded, num_samples=2)
    bits = report["nll"] / (math.log(2) * 2 * (6 + 4 + 6) / 3)
    assert report["bits_per_dimension"] == pytest.approx(bits)
    assert report["reconstruction_mse"] == pytest.approx(errors.mean().item())


def test_tokens_have_no_squared_error():
    model = tiny((6,), **TOKENS)
    assert "reconstruction_mse" not in evaluate(model, torch.randint(0, 5, (3, 6)), num_samples=0)


def test_a_condition_made_from_x_is_refused():
    with pytest.raises(ValueError, match="not on 'left-half'; a cvae is"):
        build("vrae", (1, 8, 8), condition="left-half")
