"""Evaluating a run's folder, end to end."""

import json

import pytest

from vae_fast.evaluate import evaluate_run
from vae_fast.evaluate.run import as_text

pytest.importorskip("safetensors")
pytest.importorskip("yaml")


def test_evaluate_run(tmp_path):
    from vae_fast.train import TrainConfig, Trainer

    config = TrainConfig(
        model="cvae",
        model_args={"latent_dim": 2, "hidden": 8, "network_options": {"hidden": [8]}},
        epochs=1,
        batch_size=1000,
        device="cpu",
        out=str(tmp_path / "run"),
    )
    result = Trainer(config).fit()
    report = evaluate_run(tmp_path / "run", num_samples=5, device="cpu")
    assert report["model"] == "cvae" and report["pixels"] == "grey" and report["samples"] == 2000
    assert -report["elbo"] == pytest.approx(result.loss, rel=0.01)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == report
    assert "nll" in as_text(report)
    fewer = evaluate_run(tmp_path / "run", num_samples=0, samples=100, device="cpu")
    assert fewer["samples"] == 100 and "nll" not in fewer
    with pytest.raises(ValueError, match="samples must be at least 1"):
        evaluate_run(tmp_path / "run", samples=0)
