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
# Models whose sampling alone is replaced.
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


@pytest.mark.parametrize("name", ["IWAE", "CIWAE"])
def test_samples_in_front(name, monkeypatch):
    """Outputs are the library's; what isn't pythae's own model goes to the original."""
    x = torch.rand(5, 1, 6, 6)

    def outputs(model):
        torch.manual_seed(5)
        return model({"data": x})

    model = model_of(name, number_samples=4, reconstruction_loss="bce")
    dropping = model_of(name, number_samples=4, reconstruction_loss="bce")
    dropping.decoder.layers.insert(1, torch.nn.Dropout(0.5))
    dropping.decoder.depth += 1

    class Mine(type(model)):
        def loss_function(self, recon_x, x, mu, log_var, z):
            assert recon_x.shape == (5, 4, 36)
            return super().loss_function(recon_x, x, mu, log_var, z)

    mine = model_of(name, number_samples=4, reconstruction_loss="bce")
    mine.__class__ = Mine
    models_of = (model, dropping, mine)
    expected = [outputs(m) for m in models_of]
    with vae_fast.patch("pythae", noise="torch"), monkeypatch.context() as context:
        context.setattr(type(model), "loss_function", type(model).loss_function)
        with Counting() as count:
            found = [outputs(m) for m in models_of]
        # The first model's loss is ours: its data were not repeated, and its loss_function not called.
        calls = []
        usual = vae_fast.patches.pythae_table._recon_of_samples
        context.setattr(
            vae_fast.patches.pythae_table, "_recon_of_samples",
            lambda *a: calls.append(1) or usual(*a),
        )  # fmt: skip
        for m in models_of:
            outputs(m)
        assert len(calls) == 2
    assert count
    for a, b in zip(found, expected, strict=True):
        assert list(a) == list(b)
        for key in b:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)
    with vae_fast.patch("pythae"):
        native = outputs(model)
    assert native.z.shape == expected[0].z.shape
    assert native.loss.item() == pytest.approx(expected[0].loss.item(), rel=0.2)


def test_the_trainers_adam(tmp_path):
    """Fused, and the weights after some epochs are the library's; other optimizers stay as they are."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    data = BaseDataset(torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
                       torch.zeros(24))  # fmt: skip

    def trained(**options):
        config = BaseTrainerConfig(
            output_dir=str(tmp_path), num_epochs=3, per_device_train_batch_size=8,
            learning_rate=1e-2, no_cuda=True, **options,
        )  # fmt: skip
        trainer = BaseTrainer(model_of("VAE"), data, training_config=config)
        trainer.prepare_training()
        for epoch in range(3):
            trainer.train_step(epoch)
        return trainer

    for name, more, fused in (
        ("Adam", None, True),
        ("AdamW", {"weight_decay": 0.1}, True),
        ("Adam", {"foreach": True}, None),
        ("SGD", {"momentum": 0.5}, None),
    ):
        options = {"optimizer_cls": name, "optimizer_params": more}
        before = trained(**options)
        with vae_fast.patch("pythae", noise="torch"):
            after = trained(**options)
        assert type(after.optimizer) is type(before.optimizer)
        assert after.optimizer.defaults["lr"] == 1e-2
        assert after.optimizer.defaults.get("fused") == (
            fused or before.optimizer.defaults.get("fused")
        )
        for a, b in zip(after.model.parameters(), before.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


def test_functions_replaced_since_are_kept(monkeypatch):
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
    """A subclass with its own weight matrix does not get pythae's."""

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


def test_total_correlation_in_one_node():
    """Against autograd of the formula in float64, and its second derivatives."""
    from vae_fast import reference_pairwise
    from vae_fast.patches import pythae_table as table

    torch.manual_seed(0)
    weights = (0.5, 3.0, 0.7)
    for rows, dims, size in ((3, 2, 3), (7, 3, 100), (40, 5, 41)):
        inputs = [torch.randn(rows, dims, dtype=torch.float64, requires_grad=True) for _ in "abc"]
        upstream = torch.randn(rows, dtype=torch.float64)

        def node(*tensors, size=size):
            return table._StratifiedTC.apply(*tensors, size, *weights)

        expected = table._tc(reference_pairwise, *inputs, size, True, *weights)
        grads = torch.autograd.grad(expected, inputs, upstream)
        for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            given = [t.detach().to(dtype).requires_grad_() for t in inputs]
            found = node(*given)
            torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=10 * rtol)
            mine = torch.autograd.grad(found, given, upstream.to(dtype))
            for a, b in zip(mine, grads, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=rtol, atol=10 * rtol)
    assert torch.autograd.gradgradcheck(node, [t[:4].detach().requires_grad_() for t in inputs])
