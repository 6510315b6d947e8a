"""The parts that experiments share: statistics, results as files, trainings, the other library."""

import json
import math

import pytest
import torch

from experiments import pythae_side, results, statistics, training
from experiments.results import Result, Verdict

pytest.importorskip("safetensors")
pytest.importorskip("yaml")


def test_spread_is_of_a_sample():
    assert statistics.spread([1.0, 3.0]) == pytest.approx(math.sqrt(2.0))
    assert statistics.spread([5.0]) == 0.0
    assert statistics.shown([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert statistics.error_of_difference([1.0, 3.0], [0.0, 2.0]) == pytest.approx(math.sqrt(2.0))
    with pytest.raises(ValueError, match="no values"):
        statistics.mean([])


def test_better_worse_and_neither():
    near, same, far = [10.0, 10.2, 10.4], [10.1, 10.3, 10.5], [12.0, 12.2, 12.4]
    assert statistics.not_worse(near, same) and statistics.not_worse(same, near)
    assert statistics.not_worse(near, far) and not statistics.not_worse(far, near)
    assert statistics.clearly_better(near, far) and not statistics.clearly_better(far, near)
    assert not statistics.clearly_better(near, same)


def test_results_load_and_name_failures(tmp_path):
    verdicts = [Verdict("one", True, "1 < 2"), Verdict("two", False, "2 > 1"),
                Verdict("three", None, "absent")]  # fmt: skip
    result = Result("small", "Small", "How.", {"seeds": [0]}, ["a", "b"], [["x", "1"]],
                    {"x": [1.0]}, verdicts, ["A note."]).stamp(1.26)  # fmt: skip
    paths = results.save(result, tmp_path)
    assert results.load(paths[0]) == result and result.seconds == 1.3
    text = paths[1].read_text()
    assert "| x | 1 |" in text and "| two | 2 > 1 | **does not hold** |" in text
    assert "| three | absent | not measured |" in text and f"torch {torch.__version__}" in text
    result.values["x"] = [math.nan]
    with pytest.raises(ValueError):
        results.save(result, tmp_path)
    assert json.loads(paths[0].read_text())["values"]["x"] == [1.0]


def test_an_interrupted_experiment_goes_on(tmp_path, monkeypatch, capsys):
    from experiments import __main__, models

    monkeypatch.setattr(models, "configs", lambda _: {"VAE": {}, "beta-VAE": {}})
    monkeypatch.setattr(models, "train", lambda config, *_: config["seed"])
    monkeypatch.setattr(models.pythae_models, "absence", lambda: "pythae is not installed")
    monkeypatch.setattr(models, "QUICK", {**models.QUICK, "seeds": [0, 1]})
    judged = []

    def judge(model, *_):
        if len(judged) == 3:
            raise KeyboardInterrupt
        judged.append(model)
        return 100.0 + model

    monkeypatch.setattr(models, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        __main__.run("models", True, tmp_path)
    assert judged == [0, 0, 1] and not (tmp_path / "models.json").exists()
    __main__.run("models", True, tmp_path, so_far=True)
    found = results.load(tmp_path / "models.json")
    assert found.values == {"VAE": {"vae_fast": [100, 101]}, "beta-VAE": {"vae_fast": [100]}}
    assert "Fewer seeds than said above: beta-VAE, vae_fast (1)." in found.notes
    monkeypatch.setattr(models, "judge", lambda model, *_: math.nan)
    __main__.run("models", True, tmp_path)
    found = results.load(tmp_path / "models.json")
    assert found.values["beta-VAE"] == {"vae_fast": [100, None]} and len(found.notes) == 1
    assert not (tmp_path / "models.partial").exists()
    (tmp_path / "models.partial").write_text(
        json.dumps({"settings": {}, "commit": None, "seconds": 0, "values": {}})
    )
    with pytest.raises(ValueError, match="was begun with settings"):
        __main__.run("models", True, tmp_path)


def test_data_match_their_names():
    grey, binary = training.fashion("val", limit=50), training.fashion("val", binary=True, limit=50)
    assert binary.images.dtype == torch.bool and len(binary) == 50
    assert torch.equal(binary.images, grey.images >= 128)
    bags = training.of_class(grey, 8)
    assert len(bags) == int((grey.labels == 8).sum()) > 0 and (bags.labels == 8).all()


def test_a_training_is_the_engines_own():
    """The same weights as the engine's after one step by hand, from the same seed."""
    from vae_fast import models

    data = training.fashion("val", limit=16)
    args = {"latent_dim": 2, "network_options": {"hidden": [4]}}
    config = {"model": "vae", "model_args": args, "epochs": 1, "batch_size": 16, "seed": 3}
    trained = training.train(config, data, data)
    torch.manual_seed(3)
    fresh = models.build("vae", (1, 28, 28), **args)
    moved = [(a - b).abs().max() for a, b in
             zip(trained.parameters(), fresh.parameters(), strict=True)]  # fmt: skip
    assert 0.5e-3 < max(moved) < 1.01e-3  # one step of Adam moves each weight by lr at most
    assert not trained.training
    again = training.train(config, data, data)
    for a, b in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    averaged = training.train({**config, "ema": 0.75}, data, data)
    apart = [(a - b).abs().max() for a, b in
             zip(averaged.parameters(), trained.parameters(), strict=True)]  # fmt: skip
    assert 5e-5 < max(apart) < 2e-4  # a tenth of the step is still to come
    assert training.parameters(fresh) == 784 * 4 + 4 + 4 * 4 + 4 + 2 * 4 + 4 + 4 * 784 + 784


def test_absence_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install pythae==0.1.2" in pythae_side.absence()


@pytest.mark.parametrize("name, extra", [("vae", {}), ("iwae", {"num_samples": 4})])
def test_pythae_trains_the_same_networks_to_the_same_objective(name, extra):
    pytest.importorskip("pythae")
    from vae_fast import evaluate

    data = training.fashion("val", binary=True, limit=200)
    args = {"latent_dim": 2, "network_options": {"hidden": [8]}, **extra}
    config = {"model": name, "model_args": args, "epochs": 4, "batch_size": 50, "lr": 5e-3}
    theirs = pythae_side.train(config, data, seed=1)
    ours = training.train({**config, "seed": 1}, data, data)
    torch.manual_seed(0)
    nll = [evaluate.importance_nll(m, data.images, num_samples=20).mean() for m in (ours, theirs)]
    assert nll[0] < 500  # 543 nats is log 2 for each pixel, where training begins
    assert abs(nll[0] - nll[1]) < 0.03 * nll[0]
