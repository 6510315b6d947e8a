"""pythae 0.1.2's losses and gradients, from the same networks, data and noise, to 1e-5.

Where pythae is not the paper, a test says what differs, and ours is held to the paper elsewhere
(``test_parts.py``).
"""

from types import SimpleNamespace

import pytest
import torch

from tests.models.test_parts import by_hand, images, made
from vae_fast import noise, reference
from vae_fast.models import build
from vae_fast.models.call import Call
from vae_fast.models.objectives.hamiltonian import slope
from vae_fast.tasks.samplers.metric import MetricSampler

models = pytest.importorskip("pythae.models")

BCE = SimpleNamespace(reconstruction_loss="bce")


def agree(ours, theirs, parameters):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(t, parameters, retain_graph=True) for t in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_capacity():
    model, x, key = made("capacity", capacity=8.0, gamma=3.0, rise=0), images(), noise.new_key()
    mu, logvar, z, *_ = by_hand(model, x, key)
    that = SimpleNamespace(model_config=BCE, C=8.0, beta=3.0, warmup_epoch=1)
    given = (torch.sigmoid(model.decoder(z)), x, mu, logvar, z, 2)
    theirs = models.DisentangledBetaVAE.loss_function(that, *given)[0]
    agree(model.loss(x, noise_key=key).loss, theirs, list(model.parameters()))


def test_factor():
    """The model's loss and the discriminator's. pythae's discriminator takes two batches."""
    model, x, key = made("factor", gamma=5.0, hidden=(4,)), images(), noise.new_key()
    mu, logvar, z, *_ = by_hand(model, x, key)
    that = SimpleNamespace(model_config=BCE, gamma=5.0, discriminator=model.objective.discriminator)
    other = z[3:].detach()
    given = (torch.sigmoid(model.decoder(z)), x, mu, logvar, z, other)
    _, theirs, judge = models.FactorVAE.loss_function(that, *given)
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    agree(model.loss(x, noise_key=key, phase="model").loss, theirs, networks)
    # If all z are equal, a shuffle changes nothing.
    alike = z[:1].detach().expand(6, -1)
    given = (torch.sigmoid(model.decoder(alike)), x, mu, logvar, alike, alike)
    judge = models.FactorVAE.loss_function(that, *given)[2]
    agree(model.objective.of_discriminator(alike).mean(), judge, list(model.objective.parameters()))


def judge_of(network):
    """A discriminator by pythae's interface, of codes or with the features of images."""

    def found(x, output_layer_levels=None):
        if output_layer_levels is not None:
            return {f"embedding_layer_{output_layer_levels[0]}": network[:-1](x)}
        return SimpleNamespace(embedding=torch.sigmoid(network(x)).float())

    return found


def test_adversarial_ae_at_once():
    """All at once: pythae's step, whose two losses share an encoder pass."""
    torch.manual_seed(0)
    model = build("aae", (1, 2, 3), latent_dim=2, network_options={"hidden": [5]},
                  discriminator_hidden=[4], simultaneous=True).double()  # fmt: skip
    x, key = images(), noise.new_key()
    z, eps = model.encoder(x), reference.normal(key, (6, 2), torch.float64)
    that = SimpleNamespace(
        model_config=BCE, reconstruction_loss_scale=1.0, adversarial_loss_scale=0.7,
        discriminator=judge_of(model.discriminator),
    )  # fmt: skip
    given = (torch.sigmoid(model.decoder(z)), x, z, eps)
    _, theirs, judge = models.Adversarial_AE.loss_function(that, *given)
    ours = model.loss(x, beta=0.7, noise_key=key).loss
    torch.testing.assert_close(ours, theirs + judge, rtol=1e-5, atol=1e-5)
    (phase,) = model.phases()
    own = list(model.discriminator.parameters())
    others = [p for p in phase.parameters if not any(p is q for q in own)]
    found = torch.autograd.grad(ours, [*others, *own])
    wanted = torch.autograd.grad(theirs, others, retain_graph=True)
    wanted += torch.autograd.grad(judge, own)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_vae_gans_encoder():
    """The encoder's loss agrees. pythae's discriminator leaves reconstructions out, and its decoder
    maximises the discriminator's loss; in ours it minimises -log D, as in the GAN's paper."""
    model = made("vae-gan", shape=(1, 8, 8), channels=4)
    x, key = images(5, (1, 8, 8)), noise.new_key()
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * reference.normal(key, mu.shape, torch.float64)
    y, network = torch.sigmoid(model.decoder(z)), model.objective.discriminator
    score = lambda t: SimpleNamespace(
        embedding=torch.sigmoid(network(t).flatten(1).mean(1)).float()
    )
    judge = judge_of(network)
    that = SimpleNamespace(
        discriminator=lambda t, **k: judge(t, **k) if k else score(t), reconstruction_layer=2,
        decoder=lambda t: SimpleNamespace(reconstruction=torch.sigmoid(model.decoder(t))),
        adversarial_loss_scale=0.5, equilibrium=0.68, margin=0.4,
    )  # fmt: skip
    _, theirs, *_ = models.VAEGAN.loss_function(that, y, x, z, torch.randn_like(z), mu, logvar)
    encoder = list(model.encoder.parameters())
    agree(model.loss(x, noise_key=key, phase="encoder").loss, theirs, encoder)
    found = torch.autograd.grad(model.loss(x, noise_key=key).loss, encoder)
    wanted = torch.autograd.grad(theirs, encoder)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def weighted(model, x, key, k, m):
    """What pythae's bounds take: recon_x, x, mu, logvar, z, the last all (N, M, K, D)."""
    q = model.encode(x)
    z = model.weighted_samples(x, num_samples=k * m, noise_key=key).z
    z = z.view(m, k, *q.mu.shape).permute(2, 0, 1, 3)
    mu, logvar = (t[:, None, None].expand_as(z) for t in q)
    made_of = torch.sigmoid(model.decoder(z.reshape(-1, z.shape[-1])))
    return made_of.reshape(*z.shape[:3], -1), x, mu, logvar, z


def test_ciwae_and_iwaes_gradients():
    """Gradients are the paper's. The value is not the bound: sum_k w_k log w_k in place of log mean w."""
    model, x, key = made("ciwae", samples=4, mix=0.3), images(), noise.new_key()
    recon, x, mu, logvar, z = weighted(model, x, key, 4, 1)
    that = SimpleNamespace(model_config=BCE, n_samples=4, beta=0.3)
    given = (recon[:, 0], x, mu[:, 0], logvar[:, 0], z[:, 0])
    theirs = models.CIWAE.loss_function(that, *given)[0]
    ours = model.loss(x, noise_key=key).loss
    parameters = list(model.parameters())
    found, wanted = (torch.autograd.grad(t, parameters, retain_graph=True) for t in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert theirs < ours  # a weighted mean of log w is above the log of the mean


def test_miwaes_axes_are_swapped():
    """pythae weighs over its M estimates, and averages over the K samples (axis 1 of (N, M, K))."""
    k, m, x, key = 2, 3, images(), noise.new_key()
    model, swapped = made("miwae", samples=k, estimates=m), made("miwae", samples=m, estimates=k)
    swapped.load_state_dict(model.state_dict())
    given = weighted(model, x, key, k, m)
    that = SimpleNamespace(model_config=BCE, n_samples=k, gradient_n_estimates=m)
    theirs = models.MIWAE.loss_function(that, *given)[0]
    wanted = torch.autograd.grad(theirs, list(model.parameters()), retain_graph=True)
    log_w = model.weighted_samples(x, num_samples=k * m, noise_key=key).log_weight
    as_theirs = log_w.view(m, k, -1).transpose(0, 1).reshape(k * m, -1)
    ours = -swapped.objective.mean_bound(as_theirs).mean()
    found = torch.autograd.grad(ours, list(model.parameters()), retain_graph=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    right = torch.autograd.grad(model.loss(x, noise_key=key).loss, list(model.parameters()))
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(right, wanted, strict=True))


def test_rae_l2():
    """The decoder's weight decay is its optimizer's there; here it is in the loss, as in the paper."""
    model, x = made("rae-l2", "ae", embedding=0.3, decoder=0.0), images()
    z = model.encoder(x)
    that = SimpleNamespace(model_config=SimpleNamespace(embedding_weight=0.3))
    theirs = models.RAE_L2.loss_function(that, model.decoder(z), x, z)
    ours = model.loss(x)
    agree(ours.kl, 0.3 * theirs[2], list(model.encoder.parameters()))


def test_rae_gps_penalty_is_of_the_input():
    """pythae penalises d decoded / d x, through the encoder; the paper, d decoded / d z."""
    import inspect

    assert "inputs=x" in inspect.getsource(models.RAE_GP._compute_gp)


def test_riemannian():
    """The metric, the first and the last of the leapfrog's equations, and the sampler's density agree.
    The second equation does not: pythae leaves G at the old z in it."""
    from pythae.samplers import RHVAESampler

    d, n = 3, 7
    model = made("riemannian", latent_dim=d, hidden=(400,), temperature=0.3, step=0.02)
    x, part = images(n), model.objective
    config = models.RHVAEConfig(
        input_dim=tuple(x.shape[1:]), latent_dim=d, reconstruction_loss="bce", eps_lf=0.02,
        beta_zero=0.3, temperature=1.5, regularization=0.01,
    )  # fmt: skip
    theirs = models.RHVAE(config).double()
    lower = torch.randn(n, d, d, dtype=torch.float64).tril()
    theirs.M.append(lower @ lower.mT)
    theirs.centroids.append(torch.randn(n, d, dtype=torch.float64))
    theirs.update()
    part.centers[:n], part.matrices[:n], part.kept[:n] = theirs.centroids_tens, theirs.M_tens, 1.0
    z, rho = (torch.randn(n, d, dtype=torch.float64, requires_grad=True) for _ in range(2))
    metric = part.metric(z)
    inverse = theirs.G_inv(z)
    torch.testing.assert_close(metric.inverse(z), inverse, rtol=1e-5, atol=1e-5)
    log_det = -torch.logdet(inverse)
    recon = torch.sigmoid(model.decoder(z))
    given = (recon, x, z, rho, inverse, log_det)
    force = slope(Call(model, x, (), 1.0, 0.0, "none", None), z, None)[0]
    half = torch.exp(part.log_step) / 2
    found = part.first(rho, z, force, metric, half)
    torch.testing.assert_close(found, theirs._leap_step_1(*given), rtol=1e-5, atol=1e-5)
    last = rho - half * (force + metric.slope(z, rho, metric.inverse(z)))
    torch.testing.assert_close(last, theirs._leap_step_3(*given), rtol=1e-5, atol=1e-5)
    moved = theirs._leap_step_2(*given)
    torch.testing.assert_close(moved, z + 0.02 * (inverse @ rho.unsqueeze(2)).squeeze(2))
    assert (part.move_position(rho, z, metric, half) - moved).abs().max() > 1e-5
    sampler = MetricSampler(part)
    density = RHVAESampler.log_sqrt_det_G_inv(z, theirs)
    torch.testing.assert_close(sampler.log_density(z), density, rtol=1e-5, atol=1e-5)
    # pythae's slope has G M_i (c_i - z) in place of tr(G M_i) (c_i - z), so we test its density's.
    steep = torch.autograd.grad(density.sum(), z)[0]
    torch.testing.assert_close(-metric.slope(z, None, inverse), steep, rtol=1e-5, atol=1e-5)
    theirs_slope = RHVAESampler.grad_log_prop(z, theirs).reshape(n, d)
    assert (theirs_slope - steep).abs().max() > 1e-2
