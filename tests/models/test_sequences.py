"""The sequences that examples/ train on: a real time series, and characters."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_fast import noise, tasks
from vae_fast.data import load
from vae_fast.models import build
from vae_fast.train import Trainer
from vae_fast.train.config import from_dict

ROOT = Path(__file__).parents[2]


def example(name, **changes):
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("safetensors")
    config = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    return from_dict({**config, "epochs": 1, "device": "cpu", "tensorboard": "off", **changes})


def test_real_values_one_a_step_are_series_of_one_feature():
    torch.manual_seed(0)
    options = {"latent_dim": 2, "hidden": 4, "likelihood": "gaussian"}
    flat, deep = (build("vrae", shape, **options).double().eval() for shape in ((6,), (6, 1)))
    deep.load_state_dict(flat.state_dict())
    x, key = torch.randn(3, 6, dtype=torch.float64), noise.new_key()
    one, two = flat.loss(x, noise_key=key), deep.loss(x.unsqueeze(2), noise_key=key)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(flat.reconstruct(x), deep.reconstruct(x.unsqueeze(2)).squeeze(2))


def test_the_series_has_a_year_in_it():
    data = load(ROOT / "examples" / "data" / "nino12.npz", split="train+val")
    assert data.images.shape == (709, 24) and data.images.dtype == torch.float32
    months = torch.cat([data.images[:, 0], data.images[-1, 1:]])  # the joined windows
    assert len(months) == 732
    celsius = 15.0 + 15.0 * months
    assert 18.9 < celsius.min() < 19.0 and 29.2 < celsius.max() < 29.3
    for window in (0, 17, 708):
        assert torch.equal(data.images[window], months[window : window + 24])
    centred = months - months.mean()
    year, half = ((centred[lag:] * centred[:-lag]).mean() / centred.var() for lag in (12, 6))
    assert year > 0.7 and half < -0.5
    notice = (ROOT / "examples" / "data" / "nino12.NOTICE.txt").read_text()
    assert "public domain" in notice


def test_the_series_trains_and_has_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("vae_fast.train.run_pictures.SERIES", 3)
    trainer = Trainer(example("vrae_series", out=str(tmp_path / "run")))
    result = trainer.fit()
    first = trainer.folder.metrics()[0]["loss"]
    assert result.loss < first and {p.name for p in result.pictures} == {
        "reconstructions.png", "samples.png", "curves.png",
    }  # fmt: skip


@pytest.fixture
def text(tmp_path, monkeypatch, capsys):
    if not (ROOT / "vae_fast" / "models").is_dir():
        pytest.skip("the text is made from the source tree, which is not here")
    monkeypatch.setattr(sys, "argv", ["make_text.py", str(tmp_path / "text.npz")])
    runpy.run_path(str(ROOT / "scripts" / "make_text.py"), run_name="__main__")
    return tmp_path / "text.npz"


def test_characters_train_and_are_written(text, tmp_path):
    data = load(text, split="train+val")
    assert data.images.shape[1:] == (64,) and data.images.dtype == torch.uint8
    assert int(data.images.max()) < 128 and set(data.labels.tolist()) == {0, 1, 2}
    code = data.images[data.labels == 2]
    licence = data.images[data.labels == 0]
    # Only code has many underscores.
    share = [(kind == ord("_")).float().mean() for kind in (licence, code)]
    assert share[0] == 0 and share[1] > 0.01
    config = example("text", data=str(text), out=str(tmp_path / "run"), batch_size=50)
    config.model_args |= {"hidden": 24, "latent_dim": 4}
    part = data.slice(0, 300), data.slice(300, 350)
    trainer = Trainer(config, train_data=part[0], val_data=part[1])
    trainer.draw = lambda *_, **__: []
    result = trainer.fit()
    assert 100 < result.recon < 64 * np.log(128)
    written = tasks.generate(trainer.model, 4, torch.tensor([0, 1, 2, 2]), draw=True, seed=1)
    again = tasks.generate(trainer.model, 4, torch.tensor([0, 1, 2, 2]), draw=True, seed=1)
    assert written.shape == (4, 64) and written.dtype == torch.int64
    assert torch.equal(written, again) and 0 <= written.min() and written.max() < 128

    from vae_fast.cli import main

    lines = tmp_path / "code.txt"
    # The trainer was given its data: the run's folder has all that sampling needs.
    assert main(["sample", str(tmp_path / "run"), "--label", "2", "--draw", "--n", "3",
                 "--out", str(lines)]) == 0  # fmt: skip
    assert len(lines.read_text().rstrip("\n").split("\n")) == 3


def test_samples_of_more_than_three_dimensions_are_no_sequences():
    with pytest.raises(ValueError, match=r"samples of a sequence model are .*got \(2, 3, 4, 5\)"):
        build("vrae", (2, 3, 4, 5), likelihood="bernoulli")
