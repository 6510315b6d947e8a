"""The modules are their functions: values, options, and what they refuse."""

import pytest
import torch

import vae_fast
from vae_fast import bce_kl_loss, bernoulli_nll, noise, reparameterize
from vae_fast.compat import pytorch_examples
from vae_fast.nn import BCEKLLoss, Reparameterize


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_reparameterize_is_the_function():
    mu, logvar, key = torch.randn(6, 4), torch.randn(6, 4), noise.new_key()
    assert torch.equal(Reparameterize()(mu, logvar, key), reparameterize(mu, logvar, noise_key=key))
    assert torch.equal(
        Reparameterize(num_samples=3)(mu, logvar, key),
        reparameterize(mu, logvar, num_samples=3, noise_key=key),
    )
    torch.manual_seed(1)
    first = Reparameterize()(mu, logvar)
    torch.manual_seed(1)
    assert torch.equal(first, Reparameterize().eval()(mu, logvar))
    assert not torch.equal(first, Reparameterize()(mu, logvar))


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_bce_kl_loss_is_the_function(reduction):
    logits, x = torch.randn(5, 1, 3, 3), torch.randint(0, 256, (5, 1, 3, 3), dtype=torch.uint8)
    mu, logvar = torch.randn(5, 2), torch.randn(5, 2)
    loss = BCEKLLoss(beta=2.0, reduction=reduction)
    expected = bce_kl_loss(logits, x, mu, logvar, beta=2.0, reduction=reduction)
    torch.testing.assert_close(loss(logits, x, mu, logvar), expected)
    loss.beta = 0.5  # a warm-up sets it between steps
    out = loss(logits, x, mu, logvar)
    torch.testing.assert_close(out.loss, out.recon + 0.5 * out.kl)
    from_probabilities = BCEKLLoss(0.5, reduction, from_logits=False)
    torch.testing.assert_close(from_probabilities(torch.sigmoid(logits), x, mu, logvar), out)


def test_modules_survive_compile_and_deepcopy():
    import copy

    mu, logvar = torch.randn(5, 2), torch.randn(5, 2)
    logits, x = torch.randn(5, 7), torch.rand(5, 7)
    loss = BCEKLLoss(reduction="batchmean")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, x, mu, logvar), loss(logits, x, mu, logvar))
    torch.testing.assert_close(
        copy.deepcopy(loss)(logits, x, mu, logvar)[0], loss(logits, x, mu, logvar)[0]
    )


def test_refusals():
    with pytest.raises(ValueError, match="reduction must be one of none, sum, batchmean"):
        BCEKLLoss(reduction="mean")
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        Reparameterize()(torch.zeros(3, 4), torch.zeros(3, 5))


def test_swapped_arguments_are_refused_where_it_shows():
    """Each loss would be a number like any other."""
    made = torch.rand(3, 4, requires_grad=True)
    mu = logvar = torch.zeros(3, 2, requires_grad=True)
    flat = torch.rand(3, 4)
    pictures = [(flat * 255).to(torch.uint8), flat > 0.5]
    calls = {
        r"order is loss_function\(x, x_hat, mu, logvar\).*pytorch/examples' order, \(x_hat, x, ": (
            lambda x, y: vae_fast.loss_function(y, x, mu, logvar)
        ),
        r"order is loss_function\(recon_x, x, mu, logvar\)": (
            lambda x, y: pytorch_examples.loss_function(x, y, mu, logvar)
        ),
        r"order is bernoulli_nll\(logits, target\)": bernoulli_nll,
        r"order is bce_kl_loss\(logits, target, mu, logvar\)": (
            lambda x, y: BCEKLLoss()(x, y, mu, logvar)
        ),
    }
    for message, call in calls.items():
        call(made, flat)
        with pytest.raises(ValueError, match=message):
            call(flat, made)
        for data in pictures:
            with pytest.raises(TypeError, match=message):
                call(data, made)
        with torch.no_grad():  # nothing is trained, and nothing shows
            call(flat, made)


def test_repr_names_the_options():
    assert repr(BCEKLLoss(beta=4.0)) == "BCEKLLoss(beta=4.0, reduction='sum', from_logits=True)"
    assert repr(Reparameterize(num_samples=8)) == "Reparameterize(num_samples=8)"
