"""The Riemannian VAE's metric stays bounded, and its leaps preserve volume."""

import copy

import torch

from vae_fast import noise
from vae_fast.data import load
from vae_fast.models import build

D = 3


def made(**options):
    torch.manual_seed(0)
    return build(
        "vae", (1, 4, 4), latent_dim=D, network_options={"hidden": [8]},
        objective="riemannian", objective_options={"hidden": (16,), **options},
    )  # fmt: skip


def images(n):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_float32_has_float64s_loss_where_the_metric_is_large():
    """Many close centres, and a metric's network with large outputs: G^-1 has a large condition."""
    model, x, key = made(step=1e-3, leaps=1), images(256), noise.new_key()
    with torch.no_grad():
        for p in model.objective.network.parameters():
            p *= 20
        for p in model.encoder.parameters():
            p *= 0.1
    entries = model.objective.factors(x)
    diagonal = entries.diagonal(dim1=1, dim2=2)
    assert diagonal.min() >= 0.36 and diagonal.max() <= 2.72  # 1/e and e
    assert entries.tril(-1).abs().max() <= 1 and not entries.triu(1).any()
    wide = copy.deepcopy(model).double()
    wanted = wide.loss(x.double(), noise_key=key)
    torch.testing.assert_close(
        model.loss(x, noise_key=key).loss.double(), wanted.loss, rtol=1e-5, atol=0
    )
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(x, noise_key=key)
    assert (rough.loss - wanted.loss).abs() < 0.02 * wanted.loss.abs()


def test_leaps_preserve_volume():
    """The Jacobian of (z_0, gamma) to (z_K, rho_K), by autograd: its determinant is 1, as the loss
    takes for granted. Tempering divides by sqrt(beta_0)^D at first and multiplies by it in all."""
    model, x = made(iterations=8).double(), images(4).double()
    part, q = model.objective, model.encode(x)
    lower = part.factors(x)
    metric = part.metric(q.mu)._replace(
        centers=q.mu.detach(), matrices=(lower @ lower.mT).detach(), weights=torch.ones(4).double()
    )
    call = next(calls_of(model, x[:1]))
    z, gamma = torch.randn(2, 1, D, dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(
        lambda *at: part.leapfrog(call, *at, None, metric)[:2], (z, gamma)
    )
    jacobian = torch.cat([torch.cat([b.view(D, D) for b in row], 1) for row in rows])
    determinant = torch.linalg.det(jacobian)
    assert (jacobian - torch.eye(2 * D)).abs().max() > 0.01  # it moves
    torch.testing.assert_close(determinant, torch.ones_like(determinant), rtol=1e-4, atol=0)


def calls_of(model, x):
    """The calls that ``model.loss`` makes."""
    seen = []
    terms = model.objective.terms
    model.objective.terms = lambda call: seen.append(call) or terms(call)
    model.loss(x, noise_key=noise.new_key())
    del model.objective.terms
    yield from seen


def test_training_does_not_diverge():
    """Unbounded, the metric grew with every step, and the loss was in the thousands by the 15th."""
    data = load("fashion10k", split="train").images[:960] > 127
    torch.manual_seed(0)
    parts = {"network_options": {"hidden": [32]}, "objective_options": {"hidden": (64,)}}
    model = build("vae", (1, 28, 28), latent_dim=6, objective="riemannian", **parts)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for x in data.split(32):
        loss = model.loss(x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss < 600  # 554 at first
    assert loss < 350
