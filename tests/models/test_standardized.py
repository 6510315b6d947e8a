"""Standardized columns: the density is that of x itself, and outputs are in x's units."""

import math

import pytest
import torch
from torch import distributions

from vae_fast import tasks
from vae_fast.data.columns import statistics_of
from vae_fast.models import build
from vae_fast.models.likelihoods import Standardized, make_likelihood
from vae_fast.train import fit_standardization

MEAN = torch.tensor([500.0, -2.0, 1e-3], dtype=torch.float64)
STD = torch.tensor([40.0, 1e-2, 3.0], dtype=torch.float64)


def data(n=64, shape=(3,)):
    g = torch.Generator().manual_seed(0)
    size = (n, shape[0], math.prod(shape[1:]))
    x = MEAN[:, None] + STD[:, None] * torch.randn(size, generator=g, dtype=torch.float64)
    return x.view(n, *shape)


@pytest.mark.parametrize(
    ("name", "options", "of"),
    [
        ("gaussian", {"scale": 0.5}, lambda p, s: distributions.Normal(p[0], 0.5)),
        ("laplace", {"scale": 2.0}, lambda p, s: distributions.Laplace(p[0], 2.0)),
        ("student_t", {"df": 4.0, "min_log_scale": -80.0},
         lambda p, s: distributions.StudentT(4.0, p[0], p[1].exp())),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_the_density_is_of_the_data(name, options, of, shape):
    """Beside torch.distributions with an affine transform, in float64."""
    p_x = make_likelihood(name, shape, standardize=True, **options).double()
    x = data(shape=shape)
    size = (3, *[1] * (len(shape) - 1))
    p_x.fit(MEAN, STD)
    g = torch.Generator().manual_seed(1)
    params = torch.randn(64, *p_x.parameters_shape(shape), generator=g, dtype=torch.float64)
    way = distributions.AffineTransform(MEAN.view(size), STD.view(size))
    each = distributions.TransformedDistribution(
        of(params.chunk(p_x.parameters_per_element, 1), None), [way]
    )
    wanted = -each.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(p_x.nll(params, x, reduction="none"), wanted)
    torch.testing.assert_close(p_x.nll(params, x), wanted.sum())
    torch.testing.assert_close(p_x.nll(params, x, reduction="batchmean"), wanted.mean())
    mu, logvar = torch.zeros(64, 2).double(), torch.ones(64, 2).double()
    terms = p_x.loss(params, x, mu, logvar, beta=3.0)
    torch.testing.assert_close(terms.recon, wanted.mean())
    torch.testing.assert_close(terms.loss, wanted.mean() + 3.0 * terms.kl)
    loc = params.chunk(p_x.parameters_per_element, 1)[0]
    torch.testing.assert_close(p_x.mean(params), MEAN.view(size) + STD.view(size) * loc)
    drawn = p_x.sample(params.repeat(200, *[1] * len(shape))).transpose(0, 1).flatten(1)
    torch.testing.assert_close(drawn.median(1).values, MEAN, atol=3.0, rtol=0.1)


def test_statistics_are_those_of_float64():
    x = data(5000) + 1e6  # far from 0, where float32's sum of squares loses all digits
    for given in (x, x.float()):
        mean, std = statistics_of(as_array(given))
        wide = given.double()
        torch.testing.assert_close(mean, wide.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(std, wide.std(0, correction=0), rtol=1e-7, atol=0)
    images = torch.rand(6, 3, 4, 5)
    mean, std = statistics_of(as_array(images))
    torch.testing.assert_close(mean, images.double().mean((0, 2, 3)))
    torch.testing.assert_close(std, images.double().std((0, 2, 3), correction=0))


def as_array(x):
    from vae_fast.data import from_array

    return from_array(x, bounded=False)


def test_a_column_that_is_constant_keeps_its_scale():
    x = data().float()
    x[:, 1] = 7.0
    model = build("vae", (3,), likelihood="gaussian", likelihood_options={"standardize": True})
    fit_standardization(model, x)
    assert model.likelihood.scale[1] == 1.0 and model.likelihood.shift[1] == 7.0
    assert model.network_input(x)[:, 1].abs().max() == 0


def test_columns_that_cannot_be_standardized():
    options = {"likelihood": "gaussian", "likelihood_options": {"standardize": True}}
    model = build("vae", (3,), **options)
    with pytest.raises(RuntimeError, match=r"fit_standardization\(model, data\)"):
        model.encode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape \(4,\), the model takes \(3,\)"):
        fit_standardization(model, torch.randn(9, 4))
    far = data().float()
    far[:, 2] += 1.7e9
    with pytest.raises(ValueError, match="column 2 has the mean 1.7e.09 and .* subtract"):
        fit_standardization(model, far.double() + torch.rand(64, 1).double())
    with pytest.raises(ValueError, match="bernoulli takes unit data"):
        make_likelihood("bernoulli", (3,), standardize=True)
    with pytest.raises(ValueError, match="vrae reads steps"):
        build("vrae", (5, 3), **options)
    vamp = build("vae", (3,), prior="vamp", prior_options={"bounded": False}, **options)
    with pytest.raises(ValueError, match="pseudo-inputs"):
        fit_standardization(vamp, data().float())


@pytest.mark.parametrize("kind", ["vae", "ae", "iwae", "infovae", "beta-tcvae"])
def test_units_of_the_data_change_nothing_but_the_units(kind):
    """Models of x and of 1000 x + 5, with the same weights: densities differ by log 1000 alone."""
    x = data(32).float()
    models = []
    for given in (x, 1000 * x + 5):
        torch.manual_seed(0)
        model = build(kind, (3,), latent_dim=2, likelihood="gaussian", network_options={"hidden": [8]},
                      likelihood_options={"standardize": True})  # fmt: skip
        fit_standardization(model, given)
        model.dataset_size = len(x)
        torch.manual_seed(1)
        models.append((model, model.loss(given), model.reconstruct(given)))
    (one, loss, made), (other, scaled_loss, scaled) = models
    torch.testing.assert_close(
        scaled_loss.recon, loss.recon + 3 * math.log(1000), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(scaled, 1000 * made + 5, rtol=1e-4, atol=0.5)
    torch.testing.assert_close(other.squared_error(1000 * x + 5), one.squared_error(x), rtol=1e-3, atol=1e-4)  # fmt: skip
    copy = build(kind, (3,), latent_dim=2, likelihood="gaussian", network_options={"hidden": [8]},
                 likelihood_options={"standardize": True})  # fmt: skip
    copy.load_state_dict(one.state_dict())
    torch.testing.assert_close(copy.reconstruct(x), made)


def test_gaps_are_filled_in_the_units_of_the_data():
    """For columns, and for counts, which the network sees as logarithms: known values come back
    unchanged, and a gap may hold any value."""
    torch.manual_seed(0)
    model = build("vae", (3,), latent_dim=2, likelihood="gaussian",
                  likelihood_options={"standardize": True})  # fmt: skip
    x = data(200).float()
    fit_standardization(model, x)
    known = torch.rand(x.shape) < 0.6
    holes = torch.where(known, x, torch.nan)
    for from_means in (True, False):
        found = tasks.impute(model, holes, known, steps=3, draws=4, from_means=from_means)
        assert torch.equal(found.mean[known], x[known])
        gap = (found.mean - MEAN).abs() / STD
        assert gap[~known].max() < 5
    counts = torch.poisson(torch.full((50, 3), 40.0))
    model = build("vae", (3,), latent_dim=2, likelihood="poisson")
    seen = []
    encode = model.encode
    model.encode = lambda x: seen.append(x) or encode(x)
    found = tasks.impute(model, counts, known[:50], steps=2, draws=2)
    assert torch.equal(found.mean[known[:50]], counts[known[:50]])
    assert all(torch.equal(x[:50][known[:50]], counts[known[:50]]) for x in seen)


def test_its_name_and_parts():
    p_x = make_likelihood("gaussian", (3,), standardize=True, variance="learned")
    assert isinstance(p_x, Standardized)
    assert p_x.described == "gaussian of standardized columns" and not p_x.discrete
    assert p_x.parameters_per_element == 2 and not p_x.fitted
    p_x.fit(MEAN, STD)
    assert set(p_x.state_dict()) == {"shift", "scale"} and p_x.fitted
