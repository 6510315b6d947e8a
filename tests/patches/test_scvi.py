"""vae_fast.patch("scvi"): likelihoods, gradients and a training run are the library's own."""

import pytest
import torch
from torch import Tensor

import vae_fast
from tests.patches.counting import Counting
from vae_fast.patches.deferred import Deferred

pytest.importorskip("scvi", reason="scvi-tools is not installed: pip install scvi-tools")

from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.distributions import _negative_binomial as negative_binomial

FUSED = {
    "nb": "negative_binomial_nll",
    "zinb": "zero_inflated_negative_binomial_nll",
}


def leaves(shared):
    torch.manual_seed(2)
    rate = torch.rand(6, 9).mul(5).add(0.01).requires_grad_()
    theta = torch.rand(9 if shared else (6, 9)).mul(3).add(0.1).log().requires_grad_()
    logits = torch.randn(6, 9, requires_grad=True)
    return rate, theta, logits


def distribution(likelihood, rate, theta, logits):
    if likelihood == "nb":
        return NegativeBinomial(mu=rate, theta=theta.exp())
    return ZeroInflatedNegativeBinomial(mu=rate, theta=theta.exp(), zi_logits=logits)


COUNTS = torch.tensor([[0, 0, 0, 1, 2, 5, 0, 40, 1]] * 6).float()


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_sum_is_fused_and_all_else_is_the_original(monkeypatch, likelihood, shared):
    inputs = leaves(shared)
    used = inputs[:2] if likelihood == "nb" else inputs
    upstream = torch.linspace(-1, 1, 6)
    expected = distribution(likelihood, *inputs).log_prob(COUNTS)
    sums = expected.sum(-1)
    grads = torch.autograd.grad(sums, used, upstream, retain_graph=True)
    with vae_fast.patch("scvi", noise="torch") as patch:
        assert all(o.replaced for o in patch.report), str(patch)
        for take in (
            lambda t: t.sum(-1),
            lambda t: t.sum(dim=1),
            lambda t: torch.sum(t, dim=-1),
        ):
            with Counting() as count, monkeypatch.context() as context:
                context.setattr(
                    negative_binomial, "log_nb_positive", None
                )  # the terms are not made
                context.setattr(negative_binomial, "log_zinb_positive", None)
                found = take(distribution(likelihood, *inputs).log_prob(COUNTS))
            assert count[FUSED[likelihood]] == 1, count
            assert type(found) is Tensor
            torch.testing.assert_close(found, sums, rtol=1e-5, atol=1e-5)
            for a, b in zip(torch.autograd.grad(found, used, upstream), grads, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
        with Counting() as count:
            found = distribution(likelihood, *inputs).log_prob(COUNTS)
            assert isinstance(found, Deferred)
            assert found.shape == expected.shape
            assert found.requires_grad
            for take in (
                lambda t: -t,
                lambda t: t.mean(),
                lambda t: t.sum(0),
                lambda t: t.sum(),
                lambda t: t.sum(-1, keepdim=True),
                lambda t: torch.stack([t, t]),
                lambda t: t[2:],
                lambda t: t.detach(),
            ):
                assert torch.equal(take(found), take(expected))
            more = distribution(likelihood, *inputs).log_prob(COUNTS)
            assert torch.equal(torch.autograd.grad(more.mean(), used[0])[0],
                               torch.autograd.grad(expected.mean(), used[0], retain_graph=True)[0])  # fmt: skip
        assert not count


def test_counts_outside_the_support_warn_as_before():
    inputs = leaves(True)
    for bad in (COUNTS + 0.5, -COUNTS):
        with pytest.warns(UserWarning, match="within the support"):
            expected = distribution("zinb", *inputs).log_prob(bad)
        with vae_fast.patch("scvi"), pytest.warns(UserWarning, match="within the support"):
            found = distribution("zinb", *inputs).log_prob(bad)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_sets_of_samples_are_left_to_the_original():
    rate, theta, _ = leaves(True)
    many = torch.stack([rate, rate + 1])
    expected = NegativeBinomial(mu=many, theta=theta.exp()).log_prob(COUNTS).sum(-1)
    with vae_fast.patch("scvi"):
        found = NegativeBinomial(mu=many, theta=theta.exp()).log_prob(COUNTS).sum(-1)
    assert torch.equal(found, expected)


def test_undo_and_the_encoders_normal():
    from scvi.nn import _base_components as components

    before = (NegativeBinomial.log_prob, ZeroInflatedNegativeBinomial.log_prob, components.Normal)
    with vae_fast.patch("scvi") as patch:
        assert all(o.replaced for o in patch.report), str(patch)
        assert components.Normal is vae_fast.distributions.Normal
        encoder = components.Encoder(9, 4, n_hidden=8, return_dist=True)
        with Counting() as count:
            posterior, *_ = encoder(COUNTS)
        assert any("reparameterize" in op for op in count)
        assert isinstance(posterior, torch.distributions.Normal)
    assert before == (
        NegativeBinomial.log_prob, ZeroInflatedNegativeBinomial.log_prob, components.Normal
    )  # fmt: skip


@pytest.mark.slow  # scvi-tools' own training takes seconds to start
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_training_gives_the_same_elbo(likelihood):
    import anndata
    import scvi

    def elbo():
        scvi.settings.seed = 0
        data = anndata.AnnData(torch.poisson(torch.rand(96, 30, generator=g()) * 3).numpy())
        scvi.model.SCVI.setup_anndata(data)
        model = scvi.model.SCVI(data, gene_likelihood=likelihood, n_hidden=16, n_latent=3)
        model.train(max_epochs=2, batch_size=32, accelerator="cpu", logger=False,
                    enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
        torch.manual_seed(0)
        return float(model.get_elbo())

    def g():
        return torch.Generator().manual_seed(1)

    expected = elbo()
    with vae_fast.patch("scvi", noise="torch"):
        assert elbo() == pytest.approx(expected, rel=1e-5)
