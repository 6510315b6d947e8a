"""Objectives that any VAE takes: the papers' formulas in float64, and pythae's numbers where they hold."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.models.gradients import check_gradients
from vae_fast import noise, reference
from vae_fast.functional.images import ms_ssim, psnr, ssim
from vae_fast.functional.importance import log_mean_exp
from vae_fast.models import build
from vae_fast.models.gaussian import log_density, standard_log_density
from vae_fast.models.phases import phases_of

SHAPE, D = (1, 2, 3), 2
NETWORK = {"hidden": [5], "activation": "tanh"}


def made(objective, name="vae", shape=SHAPE, **options):
    torch.manual_seed(0)
    dim = options.pop("latent_dim", D)
    given = {"network_options": NETWORK, "latent_dim": dim, "objective_options": options}
    return build(name, shape, objective=objective, **given).double()


def images(n=6, shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, dtype=torch.float64, generator=generator)


def by_hand(model, x, key):
    """mu, logvar, z, and recon and KL of each sample, by plain formulas."""
    mu, logvar = model.encoder(x).chunk(2, 1)
    z = mu + torch.exp(0.5 * logvar) * reference.normal(key, mu.shape, torch.float64)
    bce = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none")
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
    return mu, logvar, z, bce.flatten(1).sum(1), kl


def test_capacity_rises():
    model, x, key = made("capacity", capacity=8.0, gamma=3.0, rise=4), images(), noise.new_key()
    *_, recon, kl = by_hand(model, x, key)
    for step in range(6):
        out = model.loss(x, noise_key=key, beta=2.0)
        wanted = recon + 2.0 * 3.0 * (kl - 8.0 * min(step / 4, 1)).abs()
        torch.testing.assert_close(out.loss, wanted.mean())
    model.eval()  # evaluation does not count as a step
    model.loss(x, noise_key=key)
    assert model.objective.steps == 6


def test_factor_by_hand():
    model, x, key = made("factor", gamma=5.0, hidden=(4,)), images(), noise.new_key()
    *_, z, recon, kl = by_hand(model, x, key)
    p = model.objective.discriminator(z).softmax(1)
    tc = p[:, 0].log() - p[:, 1].log()
    of_model = model.loss(x, noise_key=key, phase="model")
    torch.testing.assert_close(of_model.loss, (recon + kl + 5.0 * tc).mean())
    torch.manual_seed(3)
    of_judge = model.loss(x, noise_key=key, phase="discriminator").loss
    both = model.loss(x, noise_key=key).loss
    torch.testing.assert_close(both, of_model.loss + of_judge)
    # A shuffle within each dimension changes nothing if all z are equal.
    torch.testing.assert_close(
        model.objective.of_discriminator(z[:1].expand(6, D)), _cross(model, z[:1])
    )
    model_phase, judge = phases_of(model)
    (one,) = phases_of(made("factor", gamma=5.0, hidden=(4,), simultaneous=True))
    assert one.name is None and len(one.parameters) == len(list(model.parameters()))
    for value, phase, other in (
        (of_model.loss, model_phase, judge),
        (of_judge, judge, model_phase),
    ):
        found = torch.autograd.grad(value, phase.parameters + other.parameters, allow_unused=True)
        k = len(phase.parameters)
        assert all(g is not None and g.any() for g in found[:k])
        assert all(g is None or not g.any() for g in found[k:])
    told = model.diagnostics(x)["total_correlation"]
    assert told.shape == (6,)


def _cross(model, row):
    p = model.objective.discriminator(row).softmax(1)[0]
    return (-0.5 * (p[0].log() + p[1].log())).expand(6)


@pytest.mark.parametrize("kind", [1, 2])
def test_dip_by_hand(kind):
    model, x, key = (
        made("dip-i" if kind == 1 else "dip-ii", off=2.0, own=3.0),
        images(),
        noise.new_key(),
    )
    mu, logvar, _, recon, kl = by_hand(model, x, key)
    covariance = torch.cov(mu.t(), correction=0)
    if kind == 2:
        covariance = covariance + torch.diag(logvar.exp().mean(0))
    outside = 2 * covariance[0, 1] ** 2
    wanted = (recon + kl).mean() + 2.0 * outside + 3.0 * (covariance.diagonal() - 1).square().sum()
    torch.testing.assert_close(model.loss(x, noise_key=key).loss, wanted)
    with pytest.raises(ValueError, match="defined on a batch"):
        model.loss(x, reduction="none")


def test_bounds_of_many_samples_by_hand():
    """Values, and PIWAE's two gradients: the decoder's of one bound, the encoder's of the other."""
    x, key, k, m = images(), noise.new_key(), 3, 2

    def log_w(model):
        return model.weighted_samples(x, num_samples=k * m, noise_key=key).log_weight

    miwae = made("miwae", samples=k, estimates=m)
    parts = log_w(miwae).view(m, k, -1)
    mean = -(torch.logsumexp(parts, 1) - math.log(k)).mean()
    torch.testing.assert_close(miwae.loss(x, noise_key=key).loss, mean)
    piwae = made("piwae", samples=k, estimates=m)
    piwae.load_state_dict(miwae.state_dict())
    whole = -(torch.logsumexp(log_w(piwae), 0) - math.log(k * m)).mean()
    out = piwae.loss(x, noise_key=key).loss
    torch.testing.assert_close(out, whole)
    for module, value, of in (("encoder", mean, miwae), ("decoder", whole, piwae)):
        wanted = torch.autograd.grad(
            value, list(getattr(of, module).parameters()), retain_graph=True
        )
        found = list(getattr(piwae, module).parameters())
        found = torch.autograd.grad(out, found, retain_graph=True)
        torch.testing.assert_close(found, wanted)
    ciwae = made("ciwae", samples=k, mix=0.3)
    w = ciwae.weighted_samples(x, num_samples=k, noise_key=key).log_weight
    wanted = -0.3 * w.mean(0) - 0.7 * log_mean_exp(w, 0)
    torch.testing.assert_close(ciwae.loss(x, noise_key=key).loss, wanted.mean())


@pytest.mark.parametrize("parts", [{"prior": "vamp"}, {"prior": "mixture"}, {"posterior": "iaf"}])
def test_piwae_trains_each_part_by_its_bound(parts):
    """Also where a group's weights are e^-200 of another's, which float32 has no digits for."""
    x, key, k, m = images(), noise.new_key(), 2, 3
    torch.manual_seed(0)
    model = build(
        "vae", SHAPE, objective="piwae", objective_options={"samples": k, "estimates": m},
        network_options=NETWORK, latent_dim=D, **parts,
    )  # fmt: skip
    with torch.no_grad():
        next(p for p in reversed(list(model.decoder.parameters())) if p.dim() == 2).mul_(1000)
    wide = copy.deepcopy(model).double()
    wide.objective = None
    log_w = wide.weighted_samples(x, num_samples=k * m, noise_key=key).log_weight
    groups = log_w.view(m, k, -1).logsumexp(1)
    assert (groups.max(0).values - groups.min(0).values).max() > 200
    mean, whole = -(groups - math.log(k)).mean(), -log_mean_exp(log_w, 0).mean()
    bounds = {"encoder": mean, "posterior": mean, "decoder": whole, "learned_prior": whole}
    loss = model.loss(x.float(), noise_key=key).loss
    torch.testing.assert_close(loss, whole.float(), rtol=1e-5, atol=1e-5)
    loss.backward()
    for name, bound in bounds.items():
        found = list(getattr(model, name).parameters()) if getattr(model, name) else []
        if found:
            right = list(getattr(wide, name).parameters())
            right = torch.autograd.grad(bound, right, retain_graph=True)
            for p, wanted in zip(found, right, strict=True):
                most = 1e-4 * wanted.abs().max().item()
                torch.testing.assert_close(p.grad.double(), wanted, rtol=0, atol=most, msg=name)


@pytest.mark.parametrize("penalty", ["l2", "gp"])
def test_rae_by_hand(penalty):
    model, x = made(f"rae-{penalty}", "ae", embedding=0.3, decoder=0.7), images()
    z = model.encoder(x)
    recon = (
        F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none").flatten(1).sum(1)
    )
    if penalty == "l2":
        smooth = sum(p.square().sum() for p in model.decoder.parameters()).expand(6)
    else:

        def decoded(row):
            return torch.sigmoid(model.decoder(row[None]))[0].flatten()

        jacobians = torch.stack([torch.autograd.functional.jacobian(decoded, row) for row in z])
        smooth = jacobians.square().sum((1, 2))
    wanted = recon + 2.0 * (0.15 * z.square().sum(1) + 0.7 * smooth)
    draws = 1 if penalty == "l2" else 4000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = torch.stack(
            [model.loss(x, beta=2.0, reduction="none").loss.detach() for _ in range(draws)]
        )
    error = found.std(0, correction=0) / draws**0.5
    assert ((found.mean(0) - wanted).abs() <= 4 * error + 1e-9).all()
    assert model.batches_seen > 0


def test_ssim_is_the_papers():
    """Against a loop over windows, and what is known: 1 for equal images, symmetry."""
    a, b = images(2, (3, 12, 13)), images(2, (3, 12, 13), seed=2)
    w = torch.exp(-((torch.arange(11) - 5.0).double() ** 2) / 4.5)
    w = (w / w.sum()).outer(w / w.sum())
    maps = []
    for i in range(2):
        for j in range(3):
            p, q = a[..., i : i + 11, j : j + 11], b[..., i : i + 11, j : j + 11]
            mp, mq = (w * p).sum((2, 3)), (w * q).sum((2, 3))
            vp, vq = (w * p * p).sum((2, 3)) - mp**2, (w * q * q).sum((2, 3)) - mq**2
            c = (w * p * q).sum((2, 3)) - mp * mq
            maps.append(
                (2 * mp * mq + 1e-4) * (2 * c + 9e-4) / (mp**2 + mq**2 + 1e-4) / (vp + vq + 9e-4)
            )
    torch.testing.assert_close(ssim(a, b), torch.stack(maps).mean(0).mean(1))
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(2).double())
    torch.testing.assert_close(ms_ssim(a, b), ms_ssim(b, a))
    with torch.autocast("cpu", torch.bfloat16):  # as within a training step in bf16
        torch.testing.assert_close(
            ms_ssim(a.float(), b.float()).double(), ms_ssim(a, b), rtol=1e-4, atol=1e-5
        )
        for one, two in ((a.bfloat16(), b.float()), (a.half(), b), (a.bfloat16(), b.bfloat16())):
            for measure in (ssim, ms_ssim, psnr):  # a decoder's output has autocast's dtype
                found = measure(one, two)
                wanted = measure(one.double(), two.double())
                torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(psnr(a, a + 0.1), torch.full((2,), 20.0).double())
    with pytest.raises(TypeError, match="divide bytes by 255"):
        ssim(a.to(torch.uint8), b)
    with pytest.raises(ValueError, match="both alike"):
        ssim(a, b[:1])


@pytest.mark.parametrize(
    "name",
    ["capacity", "factor", "dip-i", "dip-ii", "ms-ssim", "miwae", "ciwae", "rae-l2", "rae-gp"],
)
def test_gradients_of_objectives(name):
    small = {"hidden": (4,)} if name == "factor" else {}
    of = "ae" if name.startswith("rae") else "vae"
    shape = (1, 12, 12) if name == "ms-ssim" else SHAPE
    model, x, key = made(name, of, shape, **small).eval(), images(5, shape), noise.new_key()
    for phase, parameters, *_ in phases_of(model):
        given = {} if phase is None else {"phase": phase}
        check_gradients(
            model, lambda given=given: model(x, noise_key=key, **given).loss, parameters
        )


def test_objectives_of_other_models():
    torch.manual_seed(0)
    x, y = images(4, (1, 8, 8)).float(), torch.arange(4)
    small = {"network_options": NETWORK, "latent_dim": D}
    cvae = build("cvae", (1, 8, 8), objective="capacity", **small)
    assert cvae.loss(x, y).loss.isfinite()
    maps = build(
        "autoencoder-kl", (1, 8, 8), channels=4, multipliers=[1, 2], groups=2, objective="dip-i"
    )
    assert maps.loss(x).loss.isfinite()
    with pytest.raises(ValueError, match="InfoVAE has a loss of its own"):
        build("infovae", SHAPE, objective="capacity", **small)
    with pytest.raises(ValueError, match="RAE is for models"):
        build("vae", SHAPE, objective="rae-l2", **small)
    with pytest.raises(ValueError, match="objective must be one of elbo, capacity"):
        build("vae", SHAPE, objective="free-energy")
    with pytest.raises(ValueError, match="free_bits"):
        made("capacity").loss(images(), free_bits=1.0)


def test_hamiltonian_by_hand():
    """Leapfrog, tempering and loss written out; exact results if the decoder ignores z."""
    model, x, key = (
        made("hamiltonian", leaps=2, step=0.1, temperature=0.25),
        images(),
        noise.new_key(),
    )
    mu, logvar, z, *_ = by_hand(model, x, key)
    gamma = reference.normal(torch.stack([key[0], key[1] + 1]), mu.shape, torch.float64)
    log_q = log_density(z, mu, logvar)

    def energy(z):
        bce = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none")
        return bce.flatten(1).sum(1) + 0.5 * z.square().sum(1) + math.log(2 * math.pi)

    def slope(z):
        return torch.autograd.grad(energy(z).sum(), z, create_graph=True)[0]

    roots = [0.5, 1 / (2 - 0.25), 1.0]
    rho = gamma / 0.5
    for k in range(2):
        rho = rho - 0.05 * slope(z)
        z = z + 0.1 * rho
        rho = (rho - 0.05 * slope(z)) * roots[k] / roots[k + 1]
    wanted = energy(z) + 0.5 * rho.square().sum(1) + log_q - 0.5 * gamma.square().sum(1)
    out = model.loss(x, noise_key=key)
    torch.testing.assert_close(out.loss, wanted.mean())
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    found, grads = (
        torch.autograd.grad(t, networks, retain_graph=True) for t in (out.loss, wanted.mean())
    )
    torch.testing.assert_close(found, grads)
    assert torch.autograd.grad(out.loss, model.objective.log_step)[0].abs().min() > 0
    with torch.no_grad():
        torch.testing.assert_close(model.loss(x, noise_key=key).loss, wanted.mean().detach())


def test_rae_l2_has_forward_derivatives():
    """Along all weights at once, as the gradient gives them."""
    model, x = made("rae-l2", "ae").eval(), images()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x,)).loss

    along = {name: torch.ones_like(p) for name, p in weights.items()}
    slopes = torch.func.grad(loss)(weights)
    found = torch.func.jvp(loss, (weights,), (along,))[1]
    torch.testing.assert_close(found, sum(slope.sum() for slope in slopes.values()))


def test_vae_gan_by_hand_and_without_leaks():
    """In phases, and all losses at once: either way each network has its own loss's gradient. At
    once, each image passes the discriminator once."""
    options = {"shape": (1, 8, 8), "channels": 4, "gamma": 0.3}
    model = made("vae-gan", **options, simultaneous=False)
    x, key = images(5, (1, 8, 8)), noise.new_key()
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * reference.normal(key, mu.shape, torch.float64)
    fresh = reference.normal(torch.stack([key[0], key[1] + 1]), mu.shape, torch.float64)
    judge = model.objective.discriminator
    y, other = (torch.sigmoid(model.decoder(t)) for t in (z, fresh))
    off = 0.5 * (judge[:-1](x) - judge[:-1](y)).square().flatten(1).sum(1).mean()
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1).mean()

    def told(t, sign):
        return F.softplus(sign * judge(t)).mean()

    wanted = {
        "encoder": off + kl,
        "decoder": 0.3 * off + told(y, -1) + told(other, -1),
        "discriminator": told(x, -1) + told(y, 1) + told(other, 1),
    }
    total, phases = 0.0, phases_of(model)
    assert {id(p) for ph in phases for p in ph.parameters} == {id(p) for p in model.parameters()}
    for phase in phases:
        out = model.loss(x, noise_key=key, phase=phase.name).loss
        torch.testing.assert_close(out, wanted[phase.name])
        total = total + out
        own = {id(p) for p in phase.parameters}
        theirs = torch.autograd.grad(wanted[phase.name], phase.parameters, retain_graph=True)
        model.zero_grad()
        out.backward()
        torch.testing.assert_close([p.grad for p in phase.parameters], list(theirs))
        for name, p in model.named_parameters():
            assert id(p) in own or p.grad is None, (phase.name, name)
    at_once = made("vae-gan", **options)
    at_once.load_state_dict(model.state_dict())
    seen = []
    at_once.objective.discriminator[0].register_forward_hook(lambda *_: seen.append(1))
    out = at_once.loss(x, noise_key=key).loss
    torch.testing.assert_close(out, total)
    assert len(seen) == 3
    (phase,) = phases_of(at_once)
    assert phase.name is None and len(phase.parameters) == len(list(model.parameters()))
    out.backward()
    for phase in phases:
        theirs = torch.autograd.grad(wanted[phase.name], phase.parameters, retain_graph=True)
        names = {id(p): name for name, p in model.named_parameters()}
        found = [at_once.get_parameter(names[id(p)]).grad for p in phase.parameters]
        torch.testing.assert_close(found, list(theirs))


def test_vae_gan_of_a_decoder_with_dropout():
    """Each pass's images are judged themselves: the decoder's gradient is that of its own pass."""
    model = made("vae-gan", shape=(1, 8, 8), channels=4)
    model.decoder = torch.nn.Sequential(torch.nn.Dropout(0.5), model.decoder)
    x, key, seen, decode = images(5, (1, 8, 8)), noise.new_key(), [], model.decode
    model.decode = lambda z: (seen.append(decode(z)), seen[-1])[1]
    model.loss(x, noise_key=key).loss.backward(retain_graph=True)
    judge = model.objective.discriminator
    of_x = judge[:-1](x).detach()
    _, y, other = map(torch.sigmoid, seen)  # the encoder's pass, the decoder's, and of the prior
    off = 0.5 * (of_x - judge[:-1](y)).square().flatten(1).sum(1).mean()
    fooled = F.softplus(-judge(y)).mean() + F.softplus(-judge(other)).mean()
    own = list(model.decoder.parameters())
    wanted = torch.autograd.grad(model.objective.gamma * off + fooled, own, retain_graph=True)
    torch.testing.assert_close([p.grad for p in own], list(wanted))
    told = (
        F.softplus(-judge(x)).mean() + F.softplus(judge(y)).mean() + F.softplus(judge(other)).mean()
    )
    wanted = torch.autograd.grad(told, list(judge.parameters()))
    torch.testing.assert_close([p.grad for p in judge.parameters()], list(wanted))


@pytest.mark.parametrize("simultaneous", [True, False])
def test_vae_gan_of_recomputed_blocks(simultaneous):
    losses, grads = [], []
    x, key = images(3, (1, 16, 16)), noise.new_key()
    for checkpointing in ("none", "blocks"):
        torch.manual_seed(0)
        model = build("autoencoder-kl", (1, 16, 16), channels=4, multipliers=[1, 2], groups=2,
                      z_channels=2, checkpointing=checkpointing, objective="vae-gan",
                      objective_options={"channels": 4, "simultaneous": simultaneous})  # fmt: skip
        for phase in phases_of(model.double()):
            options = {} if phase.name is None else {"phase": phase.name}
            losses.append(model.loss(x, noise_key=key, **options).loss)
            losses[-1].backward()
        grads.append([p.grad for p in model.parameters()])
    half = len(losses) // 2
    torch.testing.assert_close(losses[:half], losses[half:])
    torch.testing.assert_close(*grads)
    assert all(g is not None for g in grads[0])


@pytest.mark.parametrize("part", [{"prior": "vamp"}, {"prior": "maf"}, {"prior": "learned"}])
def test_vae_gan_in_turn_trains_a_learned_prior_with_the_encoder(part):
    name, condition = ("cvae", (torch.arange(4),)) if part["prior"] == "learned" else ("vae", ())
    options = {"simultaneous": False, "channels": 4}
    model = build(
        name, (1, 8, 8), objective="vae-gan", objective_options=options, latent_dim=3, **part
    )
    for phase in phases_of(model):
        model.zero_grad()
        model.loss(torch.rand(4, 1, 8, 8), *condition, phase=phase.name).loss.backward()
        own = {id(p) for p in phase.parameters}
        assert all(p.grad is None for p in model.parameters() if id(p) not in own), phase.name
        prior = model.prior_network if name == "cvae" else model.learned_prior
        if phase.name == "encoder":
            assert any(p.grad is not None and p.grad.any() for p in prior.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_vae_gans_discriminator_runs_channels_last(channels):
    shape = (channels, 16, 16)
    model, x = made("vae-gan", shape=shape, channels=4).float(), images(2, shape).float()
    (features,) = model.objective._features(x)
    torch.testing.assert_close(features, model.objective.discriminator[:-1](x))
    if torch.backends.mkldnn.is_available():
        assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["factor", "vae-gan"])
def test_simultaneous_losses_have_one_rate(name):
    with pytest.raises(ValueError, match="discriminator_lr 0.5.*simultaneous to false"):
        made(name, shape=(1, 8, 8), simultaneous=True, discriminator_lr=0.5)


def test_riemannian_by_hand():
    """The metric written out, slopes by autograd, four iterations of each fixed point, and the loss."""
    options = {"leaps": 2, "step": 0.05, "temperature": 0.25, "hidden": (5,), "iterations": 4}
    model, x, key = made("riemannian", **options), images(), noise.new_key()
    part = model.objective
    mu, logvar, z, *_ = by_hand(model, x, key)
    normal = reference.normal(torch.stack([key[0], key[1] + 1]), mu.shape, torch.float64)
    lower = part.factors(x)
    assert (lower.diagonal(dim1=1, dim2=2) > 0).all() and not lower.triu(1).any()
    m = lower @ lower.mT

    def inverse(z):
        near = torch.exp(-(z[:, None] - mu).square().sum(-1) / 1.5**2)
        return (near[..., None, None] * m).sum(1) + 0.01 * torch.eye(D, dtype=torch.float64)

    def minus_log_p(z):
        bce = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="none")
        return bce.flatten(1).sum(1) + 0.5 * z.square().sum(1) + math.log(2 * math.pi)

    def energy(z, rho):
        metric = inverse(z)
        square = (rho.unsqueeze(1) @ metric @ rho.unsqueeze(2)).flatten()
        return minus_log_p(z) + 0.5 * (square - torch.logdet(metric))

    def slopes(z, rho):
        given = z.clone(), rho.clone()  # partial derivatives: rho was computed from z
        return torch.autograd.grad(energy(*given).sum(), given, create_graph=True)

    def log_normal(rho, z):
        each = torch.distributions.MultivariateNormal(
            torch.zeros(D, dtype=torch.float64), precision_matrix=inverse(z)
        )
        return each.log_prob(rho)

    gamma = torch.linalg.solve(torch.linalg.cholesky(inverse(z)).mT, normal.unsqueeze(2)).squeeze(2)
    roots, start, rho, z0 = [0.5, 1 / (2 - 0.25), 1.0], log_normal(gamma, z), gamma / 0.5, z
    for k in range(2):
        new = rho
        for _ in range(4):
            new = rho - 0.025 * slopes(z, new)[0]
        rho, at = new, z
        for _ in range(4):
            at = z + 0.025 * (slopes(z, rho)[1] + slopes(at, rho)[1])
        z = at
        rho = (rho - 0.025 * slopes(z, rho)[0]) * roots[k] / roots[k + 1]
    log_q = log_density(z0, mu, logvar)
    wanted = minus_log_p(z) + log_q + start - log_normal(rho, z)
    out = model.loss(x, noise_key=key)
    torch.testing.assert_close(out.loss, wanted.mean())
    networks = [p for n, p in model.named_parameters() if "log_step" not in n]
    found, grads = (
        torch.autograd.grad(t, networks, retain_graph=True) for t in (out.loss, wanted.mean())
    )
    torch.testing.assert_close(found, grads, rtol=1e-5, atol=1e-7)
    # Evaluation and checkpoints use the metric of the kept matrices.
    assert part.kept.sum() == 6 and part.next == 6
    model.eval()
    torch.testing.assert_close(part.metric(z0).inverse(z0), inverse(z0))
    again = made("riemannian", **options)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().loss(x, noise_key=key).loss, model.loss(x, noise_key=key).loss)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("wae-mmd", {"posterior": "planar"}, "WAE takes no posterior planar: one is for vae"),
        ("hvae", {"posterior": "iaf"}, "HVAE takes no posterior iaf"),
        ("hvae", {"objective": "miwae"}, "HVAE has a loss of its own and takes no MIWAE"),
        ("hvae", {"prior": "mixture"}, "a hierarchy learns its own prior"),
        ("hvae", {"latent_dim": 3}, "takes no latent_dim"),
        ("iwae", {"of": "vrae", "objective": "dip-i"}, "RecurrentIWAE has a loss of its own"),
        ("vrae", {"network_options": {"hidden": [8]}}, "takes no network_options"),
        ("vae", {"condition": "labels"}, "BetaVAE takes no condition: cvae and vrae do"),
        ("vae", {"objective": "rae-l2"}, "RAE is for models whose z has no density, and that of"),
        ("ae", {"objective": "rae-gp", "prior": "maf"}, "AE has no density of z"),
        ("ae", {"objective": "latent-diffusion"}, "is for models that draw z, or quantise it"),
        ("autoencoder-kl", {"latent_dim": 3}, "takes no latent_dim"),
        ("vae", {"objective": "dip-i", "posterior": "iaf"}, "not defined for the posterior iaf"),
        ("vae", {"objective": "riemannian", "posterior": "iaf"}, "takes the Gaussian$"),
        ("vae", {"objective": "hamiltonian", "posterior": "vmf"}, "the Gaussian and flows"),
        ("autoencoder-kl", {"condition": "labels"}, "autoencoder-kl takes no condition"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(name, options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        build(name, (1, 8, 8), **options)


@pytest.mark.parametrize("posterior", ["gaussian", "planar", "iaf"])
def test_a_vrae_takes_posteriors_and_objectives(posterior):
    """One bound of one sample is the loss with log q - log p for the KL."""
    options = {"hidden": 8, "latent_dim": 3, "prior": "mixture", "posterior": posterior}
    if posterior == "iaf":
        options["posterior_options"] = {"context": 2}
    torch.manual_seed(0)
    plain = build("vrae", (1, 6, 5), **options).eval()
    one = {"objective": "miwae", "objective_options": {"samples": 1, "estimates": 1}}
    model = build("vrae", (1, 6, 5), **options, **one).eval()
    model.load_state_dict(plain.state_dict())
    x, key = torch.rand(4, 1, 6, 5), noise.new_key()
    wanted = plain.loss(x, noise_key=key)
    found = model.loss(x, noise_key=key)
    torch.testing.assert_close(found.loss, wanted.recon + wanted.kl, rtol=1e-5, atol=1e-4)
    z = plain.draw(x, noise_key=key).z
    torch.testing.assert_close(wanted.recon, plain.nll_at(x, z).mean(), rtol=1e-5, atol=1e-4)
    found.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hamiltonian_starts_from_the_flows_z():
    """One leap so small that it goes nowhere: the loss is that of the flow's z."""
    torch.manual_seed(0)
    options = {"posterior": "planar", "latent_dim": D, "network_options": NETWORK}
    still = {"leaps": 1, "step": 1e-12, "temperature": 1.0}
    model = build(
        "vae", SHAPE, objective="hamiltonian", objective_options=still, **options
    ).double()
    with torch.no_grad():
        for p in model.posterior.parameters():
            p.add_(torch.randn_like(p))
    x, key = images(), noise.new_key()
    q = model.encode(x)
    z, log_q = model.posterior.sample(q, noise_key=key)
    assert (z - q.mu).abs().max() > 0.1
    wanted = model.nll_at(x, z) + log_q - standard_log_density(z)
    torch.testing.assert_close(model.loss(x, noise_key=key).loss, wanted.mean())


@pytest.mark.parametrize("part", [{"prior": "mixture"}, {"posterior": "vmf"}, {"prior": "learned"}])
def test_vae_gan_draws_from_the_models_own_prior(part):
    torch.manual_seed(0)
    name = "cvae" if part == {"prior": "learned"} else "vae"
    model = build(name, (1, 8, 8), objective="vae-gan", latent_dim=3, **part)
    with torch.no_grad():
        if name == "cvae":
            model.prior_network[-1].bias.copy_(torch.tensor([9.0, 9, 9, -9, -9, -9]))
        elif "prior" in part:
            model.learned_prior.mu.fill_(9.0), model.learned_prior.logvar.fill_(-9.0)
    seen, decode = [], model.decode
    model.decode = lambda z, *y: (seen.append(z), decode(z, *y))[1]
    condition = (torch.arange(4),) if name == "cvae" else ()
    model.loss(torch.rand(4, 1, 8, 8), *condition, phase="discriminator")
    fresh = seen[-1]
    if "posterior" in part:
        torch.testing.assert_close(fresh.norm(dim=1), torch.ones(4))
    else:
        torch.testing.assert_close(fresh, torch.full((4, 3), 9.0), atol=1.5, rtol=0)
