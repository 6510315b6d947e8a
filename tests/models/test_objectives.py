"""beta-TC-VAE, InfoVAE, WAE-MMD, and learned priors: their losses, by formulas written here again."""

import math

import pytest
import torch

import vae_fast
from vae_fast import evaluate
from vae_fast.data import as_data
from vae_fast.models import build
from vae_fast.tasks import compress
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import CheckpointConfig

SHAPE = (1, 4, 4)
SMALL = {"network_options": {"hidden": [12]}, "latent_dim": 3}
KEY = torch.tensor([5, 6])


def images(n=9):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)


def made(name, **options):
    torch.manual_seed(0)
    return build(name, SHAPE, **{**SMALL, **options}).double().eval()


def bce(model, z, x):
    p = torch.sigmoid(model.decode(z))
    return -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)


def log_normal(z, mu, logvar):
    return -((z - mu) ** 2 / logvar.exp() + logvar + math.log(2 * math.pi)) / 2


def test_beta_tcvae_is_the_papers_objective():
    n, x = 100, images()
    model = made("beta-tcvae", dataset_size=n, alpha=0.7, gamma=1.5)
    q = model.encode(x)
    z = vae_fast.reparameterize(*q, noise_key=KEY)
    b = len(x)
    weight = torch.full((b, b), 1 / (b - 1), dtype=torch.float64)
    for i in range(b):
        weight[i, i] = 1 / n
        weight[i, (i + 1) % b] = (n - b + 1) / (n * (b - 1))
    pairs = log_normal(z[:, None], q.mu, q.logvar)
    log_qz = torch.logsumexp(pairs.sum(2) + weight.log(), 1)
    marginals = torch.logsumexp(pairs + weight.log()[..., None], 1).sum(1)
    log_qzx = log_normal(z, q.mu, q.logvar).sum(1)
    log_pz = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    want = bce(model, z, x) + 0.7 * (log_qzx - log_qz)
    want = want + 6 * (log_qz - marginals) + 1.5 * (marginals - log_pz)
    for reduction, total in (("none", want), ("sum", want.sum()), ("batchmean", want.mean())):
        out = model.loss(x, beta=6.0, reduction=reduction, noise_key=KEY)
        torch.testing.assert_close(out.loss, total)
    torch.testing.assert_close(out.kl, vae_fast.gaussian_kl(*q, reduction="batchmean"))
    with pytest.raises(ValueError, match="dataset_size"):
        made("beta-tcvae").loss(x)
    with pytest.raises(ValueError, match="three parts"):
        model.loss(x, free_bits=0.1)


def imq_mmd(x, y, scales):
    def k(a, b):
        d = ((a[:, None] - b) ** 2).sum(2)
        return sum(c / (c + d) for c in scales) / len(scales)

    def within(a):
        n = len(a)
        return (k(a, a).sum() - n) / (n * (n - 1))

    return within(x) + within(y) - 2 * k(x, y).mean()


def test_infovae_and_wae_are_the_papers_objectives():
    x = images()
    scales = [2 * 3 * s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    zeros = torch.zeros(9, 3, dtype=torch.float64)
    draws = vae_fast.reparameterize(zeros, zeros, noise_key=torch.tensor([5, 7]))

    model = made("infovae", alpha=0.2, mmd_weight=50.0)
    q = model.encode(x)
    z = vae_fast.reparameterize(*q, noise_key=KEY)
    kl = (q.logvar.exp() + q.mu**2 - 1 - q.logvar).sum(1).mean() / 2
    far = imq_mmd(z, draws, scales)
    want = bce(model, z, x).mean() + 0.5 * (0.8 * kl + 49.2 * far)
    torch.testing.assert_close(model.loss(x, beta=0.5, noise_key=KEY).loss, want)

    model = made("wae-mmd")
    z = model.encode(x).mu
    far = imq_mmd(z, draws, scales)
    out = model.loss(x, beta=10.0, noise_key=KEY)
    torch.testing.assert_close(out.loss, bce(model, z, x).mean() + 10 * far)
    torch.testing.assert_close(out.kl, far)
    of_sum = model.loss(x, beta=10.0, noise_key=KEY, reduction="sum")
    torch.testing.assert_close(of_sum.loss, 9 * out.loss)
    assert model.loss(x[:1]).loss.isfinite()
    with pytest.raises(ValueError, match="on a batch"):
        model.loss(x, reduction="none")


PRIORS = [
    ("vae", "mixture"),
    ("vae", "vamp"),
    ("iwae", "vamp"),
    ("cvae", "mixture"),
    ("vrae", "vamp"),
    ("autoencoder-kl", "mixture"),
]
MAPS = {"channels": 4, "multipliers": [1, 2], "groups": 2, "z_channels": 2}
OF_MODEL = {"vrae": {"hidden": 8, "latent_dim": 3}, "autoencoder-kl": MAPS}


def with_prior(name, prior):
    torch.manual_seed(0)
    options = OF_MODEL.get(name, SMALL)
    model = build(name, SHAPE, prior=prior, prior_options={"components": 5}, **options)
    model = model.double().eval()
    for p in model.learned_prior.parameters():
        torch.nn.init.normal_(p)
    return model


@pytest.mark.parametrize(("name", "prior"), PRIORS)
def test_a_learned_prior_is_the_density_that_losses_use(name, prior):
    x = images()
    model = with_prior(name, prior)
    y = (torch.arange(9),) if model.uses_labels else ()
    p = model.learned_prior
    if prior == "vamp":
        mu, logvar = model.encode(torch.sigmoid(10 * p.points))
        log_w = torch.full((5,), -math.log(5), dtype=torch.float64)
    else:
        mu, logvar, log_w = p.mu, p.logvar, p.logits.log_softmax(0)
    q = model.encode(x, *y)
    samples = model.weighted_samples(x, *y, num_samples=2, noise_key=KEY)
    log_p = torch.logsumexp(log_normal(samples.z[:, :, None], mu, logvar).sum(3) + log_w, 2)
    log_q = log_normal(samples.z, q.mu, q.logvar).sum(2)
    torch.testing.assert_close(samples.log_weight, log_p - log_q - samples.nll)
    torch.testing.assert_close(samples.kl, (log_q - log_p).mean(0))
    out = model.loss(x, *y, noise_key=KEY)
    out.loss.backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in p.parameters())
    if name != "iwae":
        one = model.weighted_samples(x, *y, num_samples=1, noise_key=KEY)
        torch.testing.assert_close(out.kl, one.kl.mean())
        torch.testing.assert_close(out.loss, out.recon + out.kl)
        with pytest.raises(ValueError, match="free_bits"):
            model.loss(x, *y, free_bits=0.1)
    assert model.kl_per_dimension(x, *y).shape == (model.latent_dim,)
    drawn = model.sample_prior(4000)
    weights = log_w.exp()[:, None]
    mean = (weights * mu).sum(0)
    deviation = (weights * (logvar.exp() + mu**2)).sum(0) - mean**2
    off = (drawn.mean(0) - mean).abs() / (deviation / 4000).sqrt()
    assert off.max() < 5
    assert model.sample(2, *(t[:2] for t in y)).shape == (2, *SHAPE)
    if name == "vae":
        with pytest.raises(ValueError, match="prior is standard"):
            compress(model, x)


def test_priors_that_do_not_fit_say_so():
    for name, prior, words in (
        ("vae", "flow", "prior must be one of standard"),
        ("cvae", "vamp", "prior must be one of standard, learned, gaussian"),
        ("ae", "mixture", "no density"),
        ("wae-mmd", "vamp", "no density"),
        ("beta-tcvae", "mixture", "leave the prior standard"),
        ("infovae", "vamp", "leave the prior standard"),
    ):
        with pytest.raises(ValueError, match=words):
            build(name, SHAPE, prior=prior, **SMALL)
    with pytest.raises(ValueError, match="no options"):
        build("vae", SHAPE, prior_options={"components": 3}, **SMALL)


@pytest.mark.parametrize("args", [("beta-tcvae", {}), ("vae", {"prior": "mixture"})], ids=str)
def test_trained_from_a_config_and_evaluated(args, tmp_path):
    """The trainer sets the number of samples, the loss falls, and a checkpoint can be evaluated."""
    name, more = args
    x = (images(48) * 255).to(torch.uint8)
    config = TrainConfig(
        model=name,
        model_args={**SMALL, **more},
        epochs=8,
        batch_size=16,
        lr=1e-2,
        device="cpu",
        out=str(tmp_path / "run"),
        checkpoint=CheckpointConfig(),
    )
    trainer = Trainer(config, train_data=as_data(x), val_data=as_data(x[:8]))
    if name == "beta-tcvae":
        assert trainer.model.dataset_size == 48
    before = evaluate.elbo(trainer.model, x).loss.mean()
    trainer.fit()
    assert evaluate.elbo(trainer.model, x).loss.mean() < before - 0.1
    nll = evaluate.importance_nll(trainer.model, x, num_samples=20).mean()
    assert nll <= evaluate.elbo(trainer.model, x).loss.mean() + 0.1


def test_a_vamp_priors_pixels_learn_ten_times_as_fast_as_its_logits_would():
    torch.manual_seed(0)
    model = build("vae", SHAPE, prior="vamp", **SMALL).double()
    p = model.learned_prior
    before = p.pseudo_inputs.detach()
    assert 0.8 < before.logit().std() < 1.2  # sigmoids of draws from N(0, 1)
    model.loss(images()).loss.backward()
    torch.optim.Adam(p.parameters(), 1e-3).step()
    wanted = 10 * 1e-3 * before * (1 - before)
    torch.testing.assert_close((p.pseudo_inputs - before).abs(), wanted, rtol=0.02, atol=1e-5)
