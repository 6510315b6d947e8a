"""Posteriors and priors beside the Gaussian, in float64: densities, gradients, draws."""

import math

import pytest
import torch

from tests.models.gradients import check_gradients
from vae_fast import noise
from vae_fast.evaluate import evaluate
from vae_fast.models import build
from vae_fast.models.gaussian import log_density, standard_log_density
from vae_fast.models.posteriors import make_posterior
from vae_fast.models.posteriors.common import normals
from vae_fast.models.priors import make_prior
from vae_fast.networks.flows import FLOWS, make_flow
from vae_fast.tasks import compress

SHAPE = (1, 2, 3)


def moved(module, by=0.3):
    """Away from the start, where flows are the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module.double()


def vectors(n, d, scale=1.0):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(n, d, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(("d", "context"), [(1, 0), (3, 0), (3, 2)])
def test_flows_know_their_volume_and_way_back(name, d, context):
    """By each row's Jacobian. With a context, each row has a different flow."""
    flow = moved(make_flow(name, d, steps=3, hidden=(7,), context=context))
    z, given = vectors(5, d), (vectors(5, context),) if context else ()
    y, log_det = flow(z, *given)
    for i, (row, wanted) in enumerate(zip(z, log_det, strict=True)):
        own = [c[i : i + 1] for c in given]
        jacobian = torch.autograd.functional.jacobian(
            lambda r, own=own: flow(r[None], *own)[0][0], row
        )
        torch.testing.assert_close(wanted, jacobian.det().abs().log())
    if context:
        assert (flow(z, given[0].flip(0))[0] - y).abs().max() > 0.01
    if name not in ("planar", "radial"):
        back, other = flow.inverse(y, *given)
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(other, -log_det)
        assert (y - z).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gaussian", "maf", "iaf", "realnvp"])
def test_priors_are_densities_of_their_draws(name):
    """In two dimensions they sum to 1 over a grid, and draws' moments are the grid's."""
    prior = moved(
        make_prior(name, 2, SHAPE, **({} if name == "gaussian" else {"steps": 2, "hidden": (5,)}))
    )
    side = torch.linspace(-14, 14, 561, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = prior.log_density(grid, None).exp() * (side[1] - side[0]) ** 2
        draws = prior.sample(torch.randn(20000, 2, dtype=torch.float64), None)
    assert p.sum() == pytest.approx(1.0, abs=2e-3)
    mean = (p[:, None] * grid).sum(0)
    error = draws.std(0) / 20000**0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error + 2e-3).all()


def test_vmf_in_three_dimensions_is_the_closed_form():
    part = make_posterior("vmf", 3)
    raw = torch.tensor([[-2.0] * 3, [1.0] * 3, [60.0] * 3, [3000.0] * 3]).double()
    mu = vectors(4, 3)
    direction, kappa = part.parameters_of((mu, raw))
    coth = 1 / torch.tanh(kappa)
    log_sinh = kappa + torch.log(-torch.expm1(-2 * kappa)) - math.log(2)
    torch.testing.assert_close(part.kl((mu, raw)), kappa * coth - 1 - log_sinh + kappa.log())
    z, log_q = part.sample((mu, raw), num_samples=4000, noise_key=noise.new_key())
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(4000, 4).double())
    cosine = (z * direction).sum(-1)
    torch.testing.assert_close(log_q, kappa * cosine + (kappa / (4 * math.pi)).log() - log_sinh)
    mean = coth - 1 / kappa
    error = cosine.std(0) / 4000**0.5
    assert ((cosine.mean(0) - mean).abs() < 4 * error).all()
    # w = 1 + log(u + (1 - u) exp(-2 kappa)) / kappa, at the u of w.
    k = kappa.clone().requires_grad_()
    proposals = torch.randn(4, 16, 4, dtype=torch.float64)
    w = part._cosine(k, proposals)
    slope = torch.autograd.grad(w.sum(), k)[0]
    u = (torch.exp(kappa * (w.detach() - 1)) - torch.exp(-2 * kappa)) / -torch.expm1(-2 * kappa)
    k = kappa.clone().requires_grad_()
    known = 1 + (u + (1 - u) * torch.exp(-2 * k)).log() / k
    torch.testing.assert_close(known, w)
    torch.testing.assert_close(slope, torch.autograd.grad(known.sum(), k)[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("d", [2, 9])
def test_vmf_by_sums_over_the_cosine(d):
    part = make_posterior("vmf", d)
    raw, mu = torch.full((1, d), 4.0).double(), vectors(1, d)
    _, kappa = part.parameters_of((mu, raw))
    angle = torch.linspace(0, math.pi, 200001, dtype=torch.float64)
    p = torch.exp(kappa * (angle.cos() - 1)) * angle.sin() ** (d - 2)
    mean = torch.trapezoid(p * angle.cos(), angle) / torch.trapezoid(p, angle)
    even = torch.trapezoid(angle.sin() ** (d - 2), angle)
    kl = kappa * (mean - 1) - (torch.trapezoid(p, angle) / even).log()
    torch.testing.assert_close(part.kl((mu, raw)), kl)
    z, log_q = part.sample((mu, raw), num_samples=20000)
    estimate = log_q - part.log_prior(z)
    assert (estimate.mean() - kl).abs() < 4 * estimate.std() / 20000**0.5
    flat = part.sample_prior(vectors(500, d))
    torch.testing.assert_close(flat.norm(dim=-1), torch.ones(500).double())


@pytest.mark.parametrize("curvature", [1.0, 0.3])
def test_poincares_wrapped_normal(curvature):
    part = make_posterior("poincare", 2, curvature=curvature)
    root = math.sqrt(curvature)
    side = torch.linspace(-1, 1, 1601, dtype=torch.float64)[1:-1] / root
    grid = torch.cartesian_prod(side, side)
    inside = grid[grid.norm(dim=1) < (1 - 1e-4) / root]
    volume = (2 / (1 - curvature * inside.square().sum(1))) ** 2 * (side[1] - side[0]) ** 2
    total = (part.log_prior(inside).exp() * volume).sum()
    assert total == pytest.approx(1.0, abs=5e-3)
    zero = torch.zeros(500, 2).double()
    z, log_q = part.sample((zero, zero))
    torch.testing.assert_close(part.log_prior(z), log_q, rtol=1e-6, atol=1e-6)
    # exp_mu(v / lambda_mu) is at the distance |v| from mu.
    mu, logvar, key = vectors(500, 2, 0.5), vectors(500, 2, 0.3) - 1, noise.new_key()
    z, _ = part.sample((mu, logvar), noise_key=key)
    v = torch.exp(0.5 * logvar) * normals((2,), mu, noise_key=key)
    centre = part.center((mu, logvar))
    off = (z - centre).square().sum(1)
    sides = (1 - curvature * z.square().sum(1)) * (1 - curvature * centre.square().sum(1))
    r = torch.acosh(1 + 2 * curvature * off / sides) / root
    torch.testing.assert_close(r, v.norm(dim=1), rtol=1e-5, atol=1e-6)
    # On average p / q is 1, whatever q.
    one = torch.zeros(1, 2).double()
    z, log_q = part.sample((one + 0.4, one + 0.3), num_samples=40000)
    ratio = (part.log_prior(z) - log_q).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / 40000**0.5


OPTIONS = [
    ("posterior", "planar"),
    ("posterior", "radial"),
    ("posterior", "iaf"),
    ("posterior", "vmf"),
    ("posterior", "poincare"),
    ("prior", "gaussian"),
    ("prior", "maf"),
    ("prior", "iaf"),
    ("prior", "realnvp"),
]


@pytest.mark.parametrize("part, name", OPTIONS, ids=lambda value: value)
def test_a_vae_of_each(part, name):
    """Gradients, the bound of many samples, evaluation and samples."""
    torch.manual_seed(0)
    network = {"network_options": {"hidden": [5], "activation": "tanh"}, "latent_dim": 3}
    model = moved(build("vae", SHAPE, **network, **{part: name}), 0.05).eval()
    x, key = torch.rand(5, *SHAPE, dtype=torch.float64), noise.new_key()
    # The weight of a mixture's only component has no effect.
    parameters = [p for n, p in model.named_parameters() if n != "learned_prior.logits"]
    if name != "vmf":  # its draws jump where a proposal is first rejected
        check_gradients(model, lambda: model(x, noise_key=key).loss, parameters)
    out = model.loss(x, noise_key=key, beta=2.0)
    torch.testing.assert_close(out.loss, out.recon + 2.0 * out.kl)
    report = evaluate(model, x.repeat(20, 1, 1, 1), num_samples=50)
    assert report["nll"] <= -report["elbo"] + 0.5 and "recon" in report
    assert ("kl_per_dimension" in report) == (name == "gaussian")
    z = model.features(x)
    assert z.shape == (5, 3) and model.sample(4).shape == (4, *SHAPE)
    if name in ("vmf", "poincare"):
        assert (z.norm(dim=1) <= 1 + 1e-9).all()
    bound = build("iwae", SHAPE, num_samples=4, **network, **{part: name})
    assert bound.loss(x.float()).loss.isfinite()


def test_parts_are_refused_where_they_do_not_fit():
    with pytest.raises(ValueError, match="space and a prior of its own"):
        build("vae", SHAPE, posterior="vmf", prior="mixture")
    with pytest.raises(ValueError, match="posterior must be one of gaussian, planar"):
        build("vae", SHAPE, posterior="cauchy")
    with pytest.raises(ValueError, match="takes no posterior"):
        build("infovae", SHAPE, posterior="iaf")
    with pytest.raises(ValueError, match="dreg is for Gaussian"):
        build("iwae", SHAPE, posterior="planar", dreg=True).loss(torch.rand(2, *SHAPE))
    with pytest.raises(ValueError, match="latent_dim of 2 or more"):
        build("vae", SHAPE, posterior="vmf", latent_dim=1)
    with pytest.raises(ValueError, match="posterior is vmf: compress with"):
        compress(build("vae", SHAPE, posterior="vmf"), torch.rand(2, *SHAPE))


@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_a_flow_may_depend_on_x(name):
    """log q(z | x) by hand, of a sample at a time; the encoder gives the context and learns by it."""
    options = {"context": 3, "steps": 2, "hidden": (6,)}
    sizes = {"hidden": 8} if name == "cvae" else {"network_options": {"hidden": [8]}}
    given = {"posterior": "iaf", "posterior_options": options, "latent_dim": 2, **sizes}
    model = moved(build(name, SHAPE, **given))
    x, y, key = torch.rand(5, *SHAPE).double(), torch.arange(5), noise.new_key()
    condition = (y,) if name == "cvae" else ()
    q = model.encode(x, *condition)
    assert q.context.shape == (5, 3) and len(q) == 2
    drawn = model.draw(x, *condition, noise_key=key)
    start = q.mu + torch.exp(0.5 * q.logvar) * normals((2,), q.mu, noise_key=key)
    z, log_det = zip(
        *(model.posterior.flow(start[i : i + 1], q.context[i : i + 1]) for i in range(5)),
        strict=True,
    )
    torch.testing.assert_close(drawn.z, torch.cat(z))
    log_q = log_density(start, *q) - torch.cat(log_det)
    torch.testing.assert_close(drawn.kl, log_q - standard_log_density(drawn.z))
    found = model.weighted_samples(x, *condition, num_samples=3, noise_key=key)
    assert found.log_weight.shape == (3, 5)
    last = (model.head if name == "cvae" else model.encoder).parameters()
    weight = [p for p in last if p.dim() == 2][-1]
    slope = torch.autograd.grad(model.loss(x, *condition, noise_key=key).loss, weight)[0]
    assert slope.shape[0] == 2 * 2 + 3 and slope[4:].abs().sum() > 0
    with pytest.raises(ValueError, match="context must be 0 for an autoencoder-kl"):
        build("autoencoder-kl", (1, 8, 8), posterior="iaf", posterior_options={"context": 2})
