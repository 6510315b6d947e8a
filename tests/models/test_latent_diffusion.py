"""Latent diffusion's loss by hand, its phases without leaks, and the perceptual distance's gradient."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vae_fast import noise
from vae_fast.joined import Ranks, batch_joined_by
from vae_fast.models import build
from vae_fast.models.phases import phases_of
from vae_fast.networks.perceptual import LPIPS, make_perceptual

SHAPE = (1, 8, 8)


class Features(nn.Module):
    """Two layers of features, of weights that a seed fixes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return h, torch.tanh(self.second(h))


def made(name="autoencoder-kl", **options):
    torch.manual_seed(0)
    sizes = {"channels": 4, "multipliers": [1, 2], "groups": 2}
    if name == "vq-vae":
        sizes = {"network_options": sizes, "code_dim": 3, "quantizer_options": {"size": 8}}
    given = {"channels": 4, "start": 0, "perceptual": f"{__name__}:Features", **options}
    model = build(name, SHAPE, objective="latent-diffusion", objective_options=given, **sizes)
    with torch.no_grad():  # residual blocks start at 0
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p)) if p.requires_grad else None
    return model.double()


def images(n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("judge", ["hinge", "vanilla"])
def test_the_loss_by_hand(distance, judge):
    """The public formulas, written out: reconstruction, perceptual, adaptive weight, both losses."""
    options = {"log_scale": 0.3, "perceptual_weight": 0.7, "adversarial": 0.4}
    model, x, key = made(distance=distance, loss=judge, **options), images(), noise.new_key()
    drawn = model.draw(x, noise_key=key)
    y = torch.sigmoid(model.decode(drawn.z))
    network = Features().double()
    p = 0.0
    for a, b in zip(network(x), network(y), strict=True):
        p = p + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
    off = (x - y).abs() if distance == "l1" else (x - y) ** 2
    s = model.objective.log_scale
    nll = ((off + 0.7 * p.view(5, 1, 1, 1)) / s.exp() + s).sum((1, 2, 3))
    torch.testing.assert_close(model.objective.nll(x, y), nll, rtol=1e-7, atol=1e-6)
    real, fake = (model.objective.discriminator(t) for t in (x, y))
    last = model.decoder[-1].conv.weight
    of_nll = torch.autograd.grad(nll.mean(), last, retain_graph=True)[0].norm()
    of_fake = torch.autograd.grad(-fake.mean(), last, retain_graph=True)[0].norm()
    weight = 0.4 * (of_nll / (of_fake + 1e-4)).clamp(max=1e4)
    wanted = nll.mean() + 1e-3 * drawn.kl.mean() - weight * fake.mean()
    out = model.loss(x, beta=1e-3, noise_key=key, phase="autoencoder")
    torch.testing.assert_close(out.loss, wanted, rtol=1e-6, atol=1e-6)
    if judge == "hinge":
        wanted = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    else:
        wanted = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    torch.testing.assert_close(
        model.loss(x, noise_key=key, phase="discriminator").loss, wanted, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ["autoencoder-kl", "vq-vae"])
def test_phases_do_not_leak(name):
    model, x = made(name), images()
    phases = phases_of(model)
    assert [p.name for p in phases] == ["autoencoder", "discriminator"]
    ids = [{id(p) for p in phase.parameters} for phase in phases]
    assert not ids[0] & ids[1]
    frozen = {id(p) for p in model.objective.perceptual.parameters()}
    assert ids[0] | ids[1] | frozen == {id(p) for p in model.parameters()}
    for phase in phases:
        model.zero_grad()
        before = {k: v.clone() for k, v in model.named_buffers()}
        model.loss(x, phase=phase.name).loss.backward()
        own = {id(p) for p in phase.parameters}
        for key, p in model.named_parameters():
            assert (p.grad is not None) == (id(p) in own), (phase.name, key)
        if phase.name == "discriminator":  # codebooks and counts follow once a step
            assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())


def test_the_discriminator_starts_when_told_and_validation_leaves_it_out():
    model, x, key = made(start=2, perceptual=None), images(), noise.new_key()
    for step in range(4):
        judge = model.loss(x, noise_key=key, phase="discriminator").loss
        out = model.loss(x, noise_key=key, phase="autoencoder")
        alone = (out.recon + out.kl).item()
        assert (judge.item() != 0, out.loss.item() != pytest.approx(alone, rel=1e-9)) == (
            step >= 2,
        ) * 2
    with torch.no_grad():
        out = model.eval().loss(x, noise_key=key)
    torch.testing.assert_close(out.loss, out.recon + out.kl)
    assert model.objective.steps == 4


def test_the_perceptual_gradient_reaches_the_decoder_alone():
    model, x = made(adversarial=0.0, distance="l2"), images()
    assert len(phases_of(model)) == 1
    y = x.clone().requires_grad_()
    network = model.objective.perceptual
    off = network(x, y + 0.1 * torch.cos(9 * x)).sum()
    slope = torch.autograd.grad(off, y)[0]
    assert slope.abs().max() > 1e-4
    assert not any(p.requires_grad for p in network.parameters())
    model.train()
    assert not network.training
    model.loss(x).loss.backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_ranks_share_the_adaptive_weight():
    model, x, key = made(perceptual=None), images(), noise.new_key()
    with batch_joined_by(Ranks(mean=lambda mean: mean.fill_(3.0))):
        out = model.loss(x, noise_key=key, phase="autoencoder")
    fake = model.objective.discriminator(
        torch.sigmoid(model.decode(model.draw(x, noise_key=key).z))
    )
    wanted = out.recon + out.kl - 0.5 * 3.0 / (3.0 + 1e-4) * fake.mean()
    torch.testing.assert_close(out.loss, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_perceptual_distance_in_half_precision(dtype):
    """Features of 400 have squares beyond float16, and dark places have no features at all."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Features().first

        def forward(self, x):
            return torch.relu(400 * self.conv(x) - 1) * (x[:, :, :6, :6] > 0)

    distance, x = make_perceptual(Large()), images()
    y = (x + 0.1 * torch.cos(9 * x)).clamp(0.01, 1)
    x[0, :, :3], y[0, :, :3] = 0, 0
    wanted = distance.double()(x, y)
    distance.float()
    x, y = x.float(), y.float().requires_grad_()
    with torch.autocast("cpu", dtype):
        found = distance(x, y)
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0)
    assert torch.autograd.grad(found.sum(), y)[0].isfinite().all()


def test_images_are_not_rounded_to_half_precision():
    model, x = made(perceptual=None).float(), images().float()
    seen = []
    model.objective.nll = lambda x, y: seen.append(y) or (x - y).abs().flatten(1).sum(1)
    hook = model.decoder.register_forward_hook(lambda *a: seen.append(a[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(x, phase="autoencoder")
    hook.remove()
    assert seen[0].dtype == torch.bfloat16
    torch.testing.assert_close(seen[1], torch.sigmoid(seen[0].float()), rtol=1e-6, atol=0)


def test_lpips_is_given_images_that_it_knows(monkeypatch):
    class Fake(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, x, y):
            assert x.shape[1] == 3 and x.min() >= -1
            return (x - y).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Fake))
    x, y = images(), images().flip(0)
    torch.testing.assert_close(LPIPS()(x, y), 4 * (x - y).square().mean((1, 2, 3)))
    with pytest.raises(ValueError, match="1 or 3 channels, and the data are \\(2, 8, 8\\)"):
        LPIPS()(x.expand(-1, 2, -1, -1), y)
    with pytest.raises(ValueError, match=r"in \[0, 1\], and the data range from -0\.9"):
        LPIPS()(2 * x - 1, y)


def test_refusals():
    for name in ("latent-diffusion", "vae-gan", "ms-ssim"):
        model = build("vae", SHAPE, objective=name, likelihood="categorical",
                      likelihood_options={"num_classes": 4})  # fmt: skip
        with pytest.raises(ValueError, match="needs the gradient of E.*classes .categorical. have"):
            model.loss(torch.randint(4, (5, *SHAPE)))
    with pytest.raises(ValueError, match="at least 6 x 6, and these are 5 x 9"):
        build("vae", (1, 5, 9), objective="vae-gan")
    model = made()
    model.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="none of its layers is trained"):
        model.loss(images())
    with pytest.raises(ValueError, match="distance must be l1 or l2"):
        made(distance="huber")
    with pytest.raises(ValueError, match="perceptual must be lpips, none or an import path"):
        made(perceptual="vgg")
    with pytest.raises(ValueError, match="unknown phase 'encoder'"):
        made().loss(images(), phase="encoder")
    with pytest.raises(ValueError, match="takes latent-diffusion as an objective, not RAE"):
        build("vq-vae", SHAPE, objective="rae-l2", network_options={"multipliers": [1, 2]})


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, (
            "Python reads a tensor's value"
        )
        return func(*args, **(kwargs or {}))


def test_the_steps_are_read_only_where_the_discriminator_depends_on_them():
    """Otherwise a step could not be recorded, nor an evaluation vmapped over models."""
    with NoReads():
        made(adversarial=0.0).loss(images())
        with torch.no_grad():
            made().loss(images())
    models = [build("vae", SHAPE, objective="latent-diffusion").double().eval() for _ in "ab"]
    x, key = images(), noise.new_key()
    stacked = torch.func.stack_module_state(models)

    def loss(*state):
        return torch.func.functional_call(models[0], state, x, {"noise_key": key}).loss

    with torch.no_grad():
        found = torch.vmap(loss)(*stacked)
        torch.testing.assert_close(found[1], models[1].loss(x, noise_key=key).loss)
