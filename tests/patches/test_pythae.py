"""vae_fast.patch("pythae"): every model's losses and gradients are the library's own."""

import warnings

import pytest
import torch

import vae_fast
from tests.patches.counting import Counting

pytest.importorskip("pythae", reason="pythae is not installed: pip install pythae==0.1.2")

from pythae import models

MODELS = ("VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE", "FactorVAE", "INFOVAE_MMD",
          "IWAE", "CIWAE", "MIWAE", "PIWAE", "VAE_IAF", "VAE_LinNF", "VAMP", "RHVAE")  # fmt: skip
# Those of which only the sampling is replaced.
SAMPLED = {"FactorVAE", "INFOVAE_MMD", "VAMP"}
OPTIONS = {
    "BetaTCVAE": [{"use_mss": True, "alpha": 0.5, "beta": 3.0}, {"use_mss": False, "beta": 2.0}],
    "BetaVAE": [{"beta": 4.0}],
    "DisentangledBetaVAE": [{"C": 3.0, "beta": 2.0, "warmup_epoch": 4}],
    "IWAE": [{"number_samples": 4}],
    "CIWAE": [{"number_samples": 4, "beta": 0.3}],
    "MIWAE": [{"number_samples": 4, "number_gradient_estimates": 2}],
    "PIWAE": [{"number_samples": 4, "number_gradient_estimates": 2}],
}


def model_of(name, **options):
    config = f"{name}_Config" if hasattr(models, f"{name}_Config") else f"{name}Config"
    torch.manual_seed(3)
    config = getattr(models, config)(input_dim=(1, 6, 6), latent_dim=3, **options)
    return getattr(models, name)(config)


def step(model, x):
    torch.manual_seed(5)
    out = model({"data": x}, epoch=2, dataset_size=100)
    model.zero_grad()
    losses = [v for k, v in sorted(out.items()) if "loss" in k]
    (out.loss if "loss" in out else sum(losses)).backward()
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients(name):
    x = torch.rand(7, 1, 6, 6)
    for options in OPTIONS.get(name, [{}]):
        for loss in ("bce", "mse"):
            model = model_of(name, reconstruction_loss=loss, **options)
            expected = step(model, x)
            with vae_fast.patch("pythae", noise="torch"), Counting() as count:
                found = step(model, x)
            for a, b in zip(found, expected, strict=True):
                for own, theirs in zip(a, b, strict=True):
                    scale = theirs.abs().max().clamp_min(1e-3).item()
                    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=2e-6 * scale)
            fused = sum(count.values()) > 0
            assert fused == (name not in SAMPLED | {"RHVAE"} and (loss == "bce" or name in
                             {"VAE", "BetaVAE", "DisentangledBetaVAE", "BetaTCVAE"})), count  # fmt: skip


def test_native_noise_is_another_draw_of_the_same_distribution():
    model = model_of("VAE")
    mu, std = torch.full((20000, 2), 3.0), torch.full((20000, 2), 0.5)
    with vae_fast.patch("pythae"), Counting() as count:
        z, eps = model._sample_gauss(mu, std)
    assert any("reparameterize" in op for op in count)
    torch.testing.assert_close(z, mu + std * eps)
    assert abs(eps.mean()) < 0.03
    assert abs(eps.std() - 1) < 0.03


def test_undo_puts_the_originals_back():
    owners = [models.VAE, models.BetaVAE, models.BetaTCVAE, models.IWAE, models.RHVAE]
    before = [(o.__dict__["loss_function"], o.__dict__["_sample_gauss"]) for o in owners]
    patch = vae_fast.patch("pythae")
    assert all(outcome.replaced for outcome in patch.report), str(patch)
    assert models.VAE.__dict__["loss_function"] is not before[0][0]
    with pytest.raises(RuntimeError, match="pythae is patched already.*undo"):
        vae_fast.patch("pythae")
    patch.undo()
    after = [(o.__dict__["loss_function"], o.__dict__["_sample_gauss"]) for o in owners]
    assert all(
        a is b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae_fast.patch("pythae").undo()


def test_a_source_that_is_not_known_is_left_alone(monkeypatch):
    def loss_function(self, recon_x, x, mu, log_var, z):
        return 1, 2, 3

    monkeypatch.setattr(models.VAE, "loss_function", loss_function)
    with pytest.warns(RuntimeWarning, match="left 1 of .*VAE.loss_function has a source that"):
        patch = vae_fast.patch("pythae")
    assert models.VAE.__dict__["loss_function"] is loss_function
    assert [o.target for o in patch.report if not o.replaced] == [
        "pythae.models.vae.vae_model.VAE.loss_function"
    ]
    patch.undo()


def test_a_version_that_is_not_known_is_left_alone(monkeypatch):
    before = models.VAE.__dict__["loss_function"]
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.1")
    with pytest.warns(RuntimeWarning, match=r"pythae 9.1 is not within \[0.1.2, 0.2\)"):
        patch = vae_fast.patch("pythae")
    assert models.VAE.__dict__["loss_function"] is before
    patch.undo()


def test_what_was_replaced_since_stays(monkeypatch):
    before = models.VAE.__dict__["loss_function"]
    patch = vae_fast.patch("pythae")
    monkeypatch.setattr(models.VAE, "loss_function", len)
    with pytest.warns(RuntimeWarning, match="VAE.loss_function was replaced again"):
        patch.undo()
    assert models.VAE.loss_function is len
    models.VAE.loss_function = before
    monkeypatch.undo()
    models.VAE.loss_function = before


def test_own_weights_of_beta_tcvae_stay(monkeypatch):
    """A subclass that brings its own weight matrix is not computed by pythae's."""

    class Mine(models.BetaTCVAE):
        def _log_importance_weight_matrix(self, batch_size, dataset_size):
            return torch.zeros(batch_size, batch_size)

    torch.manual_seed(3)
    model, x = (
        Mine(models.BetaTCVAEConfig(input_dim=(1, 6, 6), latent_dim=3)),
        torch.rand(7, 1, 6, 6),
    )
    expected = step(model, x)[0]
    with vae_fast.patch("pythae", noise="torch"):
        found = step(model, x)[0]
    torch.testing.assert_close(found, expected)
