"""The models' likelihoods: the list by the same names, what the decoder gives, and runs on counts."""

import json
import math

import numpy as np
import pytest
import torch

import vae_fast
from vae_fast import models
from vae_fast.cli import main
from vae_fast.data import as_data, of_counts
from vae_fast.likelihoods import SPECS
from vae_fast.models.likelihoods import LIKELIHOODS, DiscretizedLogistic, make_likelihood

SHAPE = (3, 4, 5)
OPTIONS = {"categorical": {"num_classes": 6}, "discretized_logistic_mixture": {"components": 2}}


def data_for(likelihood, n=4):
    generator = torch.Generator().manual_seed(1)
    high = {"count": 4, "category": 6}.get(likelihood.target, 256)
    return torch.randint(high, (n, *SHAPE), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood(backend, name):
    """nll and loss equal the op's. mean and sample have the data's shape and values."""
    p_x = make_likelihood(name, SHAPE, **OPTIONS.get(name, {}))
    assert p_x.described == name
    x = data_for(p_x)
    params = torch.randn(4, *p_x.parameters_shape(SHAPE)).requires_grad_()
    nll = p_x.nll(params, x, reduction="none")
    given = [torch.as_tensor(p).double() for p in p_x.given(params)]
    terms = vae_fast.reference.nll_terms(p_x.spec, given, p_x.data(x, params).double()
        if p_x.target not in ("unit", "real", "category") else p_x.data(x, params))  # fmt: skip
    torch.testing.assert_close(nll.double(), terms.flatten(1).sum(1), rtol=1e-5, atol=1e-4)
    mu, logvar = torch.randn(4, 2), torch.randn(4, 2)
    out = p_x.loss(params, x, mu, logvar, beta=0.5)
    torch.testing.assert_close(out.recon, nll.mean())
    torch.testing.assert_close(out.loss, nll.mean() + 0.5 * out.kl)
    out.loss.backward()
    assert params.grad.isfinite().all() and params.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in p_x.parameters())
    mean, sample = p_x.mean(params.detach()), p_x.sample(params.detach())
    assert mean.shape == sample.shape == x.shape
    if p_x.target in ("unit", "level"):
        assert (mean >= 0).all() and (mean <= 1).all() and (sample <= 1).all()
    samples = p_x.nll_samples(torch.stack([params, params]).detach(), x)
    torch.testing.assert_close(samples[1], nll.detach(), rtol=1e-4, atol=1e-3)
    assert p_x.discrete == (p_x.target in ("count", "level", "category") or name == "bernoulli")
    with pytest.raises(ValueError, match="shape"):
        p_x.nll(params[:, :-1], x)


def test_the_models_list_is_the_ops_list():
    assert set(LIKELIHOODS) == {spec.family for spec in SPECS.values()}


def test_dispersions_are_parameters_of_features():
    """One for each feature. With "per_element" the decoder gives one for each element."""
    for name, outputs in (("negative_binomial", 1), ("zero_inflated_negative_binomial", 2)):
        p_x = make_likelihood(name, (7,))
        assert p_x.parameters_per_element == outputs
        assert (
            p_x.log_dispersion.shape == (7,)
            and p_x.given(torch.zeros(2, 7 * outputs))[1].dim() == 1
        )
        assert make_likelihood(name, SHAPE).log_dispersion.shape == (3, 1, 1)
        assert make_likelihood(name, dispersion="shared").log_dispersion.dim() == 0
        of_elements = make_likelihood(name, dispersion="per_element")
        assert of_elements.parameters_per_element == outputs + 1 and not list(
            of_elements.parameters()
        )
    with pytest.raises(ValueError, match="needs the data's shape"):
        make_likelihood("negative_binomial")


def test_levels_of_bytes_and_of_fractions_are_equal():
    p_x = DiscretizedLogistic()
    x = torch.arange(256, dtype=torch.uint8).view(1, 256)
    params = torch.randn(1, 512)
    a, b = p_x.nll(params, x), p_x.nll(params, x.float() / 255)
    assert torch.equal(a, b)
    black = torch.zeros(1, 256, dtype=torch.bool)
    assert torch.equal(p_x.nll(params, ~black), p_x.nll(params, torch.full_like(x, 255)))
    # The mean's scale is that of data in [0, 1].
    params = torch.cat([2 * (x / 255) - 1, torch.full((1, 256), -6.0)], 1)
    torch.testing.assert_close(p_x.mean(params), x / 255)


def test_a_mixture_needs_colour_images():
    with pytest.raises(ValueError, match="discretized_logistic takes any shape"):
        models.build("vae", (1, 8, 8), likelihood="discretized_logistic_mixture")
    model = models.build("vae", (3, 8, 8), likelihood="discretized_logistic_mixture")
    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    model.loss(x).loss.backward()
    assert model.reconstruct(x).shape == x.shape


def test_a_model_reads_counts_as_logarithms():
    model = models.build("vae", (6,), likelihood="poisson", network_options={"hidden": [8]})
    x = torch.tensor([[0, 1, 2, 3, 100, 255]], dtype=torch.uint8)
    torch.testing.assert_close(model.network_input(x), torch.log1p(x.float()))
    assert model.squared_error(x).shape == (1,)


def counts(rows=60, genes=12):
    """Overdispersed counts, most of them 0, a few of them large."""
    random = np.random.default_rng(0)
    rates = random.gamma(0.5, 2.0, (rows, genes)) * random.binomial(1, 0.5, (rows, genes))
    return random.poisson(rates).astype(np.int64)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_a_count_matrix_trains_from_the_command_line(tmp_path, dtype):
    data = tmp_path / "counts.npy"
    np.save(data, counts().astype(dtype))
    options = {"likelihood": "zero_inflated_negative_binomial", "latent_dim": 2}
    options["network_options"] = {"hidden": [16]}
    arguments = ["train", "--data", data, "--model", "vae", "--model-args", json.dumps(options)]
    arguments += ["--epochs", 3, "--batch-size", 16, "--device", "cpu", "--tensorboard", "off"]
    assert main([str(a) for a in [*arguments, "--out", tmp_path / "run"]]) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [v for row in rows for k, v in json.loads(row).items() if k.endswith("loss")]
    assert losses and all(math.isfinite(v) for v in losses)
    assert losses[-1] < losses[1]  # validation, after training and validation of the first epoch


def test_likelihoods_say_which_values_they_take():
    table = as_data(counts(), bounded=False)
    assert table.dtype == torch.float32 and torch.equal(
        table.images, torch.from_numpy(counts()).float()
    )
    assert of_counts(table) is table
    bits = as_data((counts() > 0).astype(np.uint8), bounded=False)
    assert of_counts(bits) is bits  # bytes are counts, and not x / 255
    for wrong in (counts() - 1.0, counts() / 2.0):
        with pytest.raises(ValueError, match="as they were counted"):
            of_counts(as_data(wrong, bounded=False))
    with pytest.raises(ValueError, match="beyond 2\\^24"):
        as_data(counts() + 2**25, bounded=False)
    with pytest.raises(TypeError, match="convert them to uint8"):
        as_data(counts())
