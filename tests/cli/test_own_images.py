"""A run on a custom folder of images: sizes, names of classes and files, held-out samples."""

import csv
import json

import numpy as np
import pytest
import torch

from vae_fast import tasks
from vae_fast.cli import main
from vae_fast.data import folders, load, open_shards
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import from_dict, to_dict
from vae_fast.train.run_data import load_split
from vae_fast.train.setup import load_data

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of three classes, of many sizes."""
    root = tmp_path_factory.mktemp("own") / "photos"
    random = np.random.RandomState(0)
    for i in range(30):
        path = root / ("cat", "dog", "fish")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 80, (9 + i % 4, 12, 3)) + 80 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(photos):
    """A CVAE on them, trained by the command line."""
    out = photos.parent / "run"
    assert run(
        "train", "--model", "cvae", "--data", photos, "--data.size", 8, "--data.mode", "L",
        "--data.held-out", 0.2, "--epochs", 1, "--batch-size", 8, "--device", "cpu", "--out", out,
        "--tensorboard", "off", "--model_args",
        '{"latent_dim": 2, "hidden": 8, "condition_options": {"num_classes": 3}, '
        '"network_options": {"hidden": [8]}}',
    ) == 0  # fmt: skip
    return out


def test_sizes_are_changed_only_on_request(photos, capsys):
    assert run("train", "--data", photos, "--out", photos.parent / "none") == 1
    assert "images of 4 sizes" in (said := capsys.readouterr().err) and "--data.size N" in said
    assert not (photos.parent / "none").exists()
    assert (
        run("train", "--data", "fashion10k", "--data.size", 8, "--out", photos.parent / "none") == 1
    )
    assert "data.size is for image files, and fashion10k is none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("train", "--help")
    assert "--data.size" in capsys.readouterr().out


def test_held_out_samples_are_of_every_class_and_stay_held_out(photos, trained):
    record = json.loads((trained / "data.json").read_text())
    assert record["classes"] == ["cat", "dog", "fish"]
    assert sorted(name.split("/")[0] for name in record["held_out"]) == ["cat"] * 2 + [
        "dog"] * 2 + ["fish"] * 2  # fmt: skip
    config = tasks.load_model(trained, device="cpu").config
    added = photos / "cat" / "0a.png"
    added.write_bytes((photos / "cat" / "0.png").read_bytes())
    try:
        assert load_split(config, "val").files == record["held_out"]
        train = load_split(config, "train")
        assert "cat/0a.png" in train.files and train.shape == (1, 8, 8)
        assert load(photos, split="val", options=config.data_options).files != record["held_out"]
    finally:
        added.unlink()
    (trained / "data.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"data.json can't be read: .*remove it"):
        load_split(config, "val")
    (trained / "data.json").write_text(json.dumps(record))


def test_a_folder_is_read_once_for_both_splits(photos, trained, monkeypatch):
    config = tasks.load_model(trained, device="cpu").config
    read = []
    headers = folders._headers
    monkeypatch.setattr(folders, "_headers", lambda *a, **k: read.append(1) or headers(*a, **k))
    train, val = load_data(config)
    assert len(read) == 1 and not set(train.files) & set(val.files)
    assert val.files == json.loads((trained / "data.json").read_text())["held_out"]


def test_labels_are_given_by_name(trained, tmp_path, capsys):
    for label in ("fish", 2):
        assert (
            run("sample", trained, "--label", label, "--n", 3, "--out", tmp_path / f"{label}.npy")
            == 0
        )
    np.testing.assert_array_equal(np.load(tmp_path / "fish.npy"), np.load(tmp_path / "2.npy"))
    assert run("sample", trained, "--label", "bird") == 1
    assert "no class 'bird': give a number, or a name of cat, dog, fish" in capsys.readouterr().err
    assert run("attribute", trained, "dog", "--out", tmp_path / "dog.npy") == 0


def test_names_are_kept_with_features_and_shards(photos, trained, tmp_path):
    assert run("encode", trained, "--data", photos, "--out", tmp_path / "f.npy") == 0
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(np.load(tmp_path / "f.npy")) == 30
    for row in rows:
        assert (
            row["class"] == row["file"].split("/")[0] == ("cat", "dog", "fish")[int(row["label"])]
        )
    assert run("pack", photos, tmp_path / "shards", "--data.size", 8, "--workers", 0) == 0
    assert open_shards(tmp_path / "shards").classes == ("cat", "dog", "fish")
    other = tmp_path / "other" / "dog"  # of one class, which is number 1 in the run
    other.mkdir(parents=True)
    (other / "x.png").write_bytes((photos / "dog" / "1.png").read_bytes())
    assert run("encode", trained, "--data", other.parent, "--out", tmp_path / "g.npy") == 0
    assert (tmp_path / "g.csv").read_text().splitlines() == ["file,label,class", "dog/x.png,1,dog"]


def test_one_image_and_the_last_checkpoint_where_there_is_no_best(
    trained, tmp_path, photos, capsys
):
    config = TrainConfig(
        data=str(photos), epochs=1, batch_size=8, device="cpu", out=str(tmp_path / "run"),
        tensorboard="off", model_args={"latent_dim": 2, "network_options": {"hidden": [8]}},
    )  # fmt: skip
    config = from_dict({**to_dict(config), "data_options": {"size": 8, "mode": "L"}})
    trainer = Trainer(config)
    trainer.draw = lambda *_, **__: []
    trainer.validate = lambda: None  # so that no checkpoint is the best
    trainer.result = lambda: None
    trainer.fit()
    out = tmp_path / "again.npy"
    with pytest.warns(UserWarning, match="has no best checkpoint: the last is used"):
        assert (
            run("reconstruct", tmp_path / "run", "--data", photos / "cat" / "0.png", "--out", out)
            == 0
        )
    assert np.load(out).shape == (1, 1, 8, 8)
    assert run("reconstruct", tmp_path / "run", "--checkpoint", "best", "--out", out) == 1
    assert "no checkpoint 'best'" in capsys.readouterr().err
    (tmp_path / "run" / "config.yaml").write_text(
        (tmp_path / "run" / "config.yaml").read_text().replace("size: 8", "size: 9")
    )
    assert (
        run("reconstruct", tmp_path / "run", "--checkpoint", "last", "--data", photos, "--out", out)
        == 1
    )
    assert "give --data.size 8 --data.mode L" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [
        (255, 0, "if they stand for 0..255, divide.*of counts.*negative_binomial"),
        (2, -1, r"map them with \(x \+ 1\) / 2"),
    ],
)
def test_a_bernoulli_likelihood_refuses_values_outside_0_to_1(tmp_path, scale, shift, words):
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scale + shift
    np.save(tmp_path / "x.npy", images.numpy())
    options = {"latent_dim": 2, "network_options": {"hidden": [8]}}
    common = {"data": str(tmp_path / "x.npy"), "epochs": 1, "device": "cpu", "batch_size": 20,
              "out": str(tmp_path / "run"), "tensorboard": "off"}  # fmt: skip
    with pytest.raises(ValueError, match=words):
        Trainer(TrainConfig(model_args=options, **common))
    assert not (tmp_path / "run").exists()
    from vae_fast.data import as_data

    given = as_data(torch.utils.data.StackDataset(images), bounded=False)
    with pytest.raises(ValueError, match=words):
        Trainer(TrainConfig(model_args=options, **common), train_data=given, val_data=given)
    trainer = Trainer(TrainConfig(model_args={**options, "likelihood": "gaussian"}, **common))
    assert trainer.batches.data.range[1] > 0.9 * (scale + shift)


def test_binary_bytes_are_refused_but_by_a_likelihood_of_classes(tmp_path):
    images = torch.randint(0, 2, (40, 1, 8, 8), dtype=torch.uint8)
    options = {"latent_dim": 2, "network_options": {"hidden": [8]}}
    common = {"epochs": 1, "device": "cpu", "batch_size": 20, "tensorboard": "off"}
    for more in ({}, {"likelihood": "gaussian"}):
        config = TrainConfig(model_args=options | more, out=str(tmp_path / "no"), **common)
        with pytest.raises(ValueError, match=r"largest value is 1.*astype\(bool\)"):
            Trainer(config, train_data=images, val_data=images)
    more = {"likelihood": "categorical", "likelihood_options": {"num_classes": 2}}
    config = TrainConfig(model_args=options | more, out=str(tmp_path / "yes"), **common)
    Trainer(config, train_data=images, val_data=images)
