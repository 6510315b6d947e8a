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


def test_labels_and_factors_add_their_scores(tmp_path):
    from vae_fast.data import load
    from vae_fast.evaluate import anomaly_auroc
    from vae_fast.tasks import load_model
    from vae_fast.train import TrainConfig, Trainer

    small = {"latent_dim": 2, "network_options": {"hidden": [8]}}
    images, sprites = (
        TrainConfig(model="vae", model_args=small, data=data, epochs=1, device="cpu",
                    tensorboard="off", batch_size=512, out=str(tmp_path / data))
        for data in ("fashion10k", "sprites")
    )  # fmt: skip
    Trainer(images).fit()
    options = {"num_samples": 0, "samples": 200, "device": "cpu"}
    report = evaluate_run(tmp_path / "fashion10k", normal=[1], labels_per_class=10, **options)
    val = load("fashion10k", split="val").slice(0, 200)
    model = load_model(tmp_path / "fashion10k", device="cpu").model
    by_hand = anomaly_auroc(model, val.images, val.labels, [1])
    assert report["auroc_reconstruction"] == pytest.approx(by_hand["reconstruction"])
    assert 0.2 < report["few_label_accuracy"] <= 1.0 and report["labels_per_class"] == 10
    assert "mig" not in report
    few = {part: load("sprites", split=part).shuffled(0).slice(0, 600) for part in ("train", "val")}
    Trainer(sprites, train_data=few["train"], val_data=few["val"]).fit()
    report = evaluate_run(tmp_path / "sprites", **options)
    assert 0.0 <= report["mig"] < 0.5 and 0.0 < report["factor_vae_score"] <= 1.0
    assert report["pixels"] == "binary"
    with pytest.raises(ValueError, match="class 0 has"):
        evaluate_run(tmp_path / "fashion10k", labels_per_class=5000, **options)
