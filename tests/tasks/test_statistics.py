"""Latents as data: posteriors, and a factor that gives their draws unit variance."""

import numpy as np
import pytest
import torch

from vae_fast import models, tasks
from vae_fast.cli import main


@pytest.mark.parametrize("name", ["vae", "autoencoder-kl"])
def test_statistics_of_the_draws(name):
    torch.manual_seed(0)
    options = {"latent_dim": 3} if name == "vae" else {
        "channels": 8, "multipliers": [1, 2], "groups": 4, "z_channels": 2,
    }  # fmt: skip
    model = models.build(name, (1, 8, 8), **options)
    x = torch.rand(60, 1, 8, 8)
    found = tasks.statistics(model, x, batch_size=16)
    mu, logvar = model.eval().encode(x)
    torch.testing.assert_close(found.mean.flatten(1), mu)
    torch.testing.assert_close(found.std.flatten(1), torch.exp(0.5 * logvar))
    assert found.mean.shape[1:] == ((3,) if name == "vae" else (2, 4, 4))
    z = found.mean + found.std * torch.randn(4000, *found.mean.shape)
    assert float((z * found.scaling_factor).std()) == pytest.approx(1.0, abs=0.01)
    channels = z.transpose(0, 2).flatten(1)
    torch.testing.assert_close(channels.mean(1), found.channel_mean, rtol=0, atol=0.02)
    torch.testing.assert_close(channels.std(1), found.channel_std, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="no samples"):
        tasks.statistics(model, x[:0])
    with pytest.raises(TypeError, match="the latents' statistics needs"):
        tasks.statistics(models.build("ae", (1, 8, 8)), x)


def test_the_command(tmp_path, capsys):
    run = str(tmp_path / "run")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8))
    train = ["train", "--data", str(tmp_path / "x.npy"), "--model", "vae", "--epochs", "1"]
    assert main([*train, "--batch-size", "16", "--device", "cpu", "--out", run]) == 0
    assert main(["encode", run, "--statistics", "--data", str(tmp_path / "x.npy")]) == 0
    assert "scaling factor" in capsys.readouterr().out
    with np.load(tmp_path / "run" / "latents.npz") as found:
        assert found["mean"].shape == found["std"].shape == (60, 20)
        assert (found["std"] > 0).all()
        assert found["scaling_factor"] > 0
    assert main(["encode", run, "--statistics", "--out", "x.npy"]) == 2
    assert "must end in .npz with --statistics" in capsys.readouterr().err
