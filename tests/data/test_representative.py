"""Of data sorted by class, measures and pictures take a part that stands for all classes."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vae_fast import evaluate, tasks
from vae_fast.cli import main
from vae_fast.data import Batches, DataOptions, as_data, load
from vae_fast.data.representative import representative_rows, take
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.run_pictures import some_samples

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (90, 4, 4), dtype=np.uint8))
SORTED = torch.arange(3).repeat_interleave(30)


def test_rows_are_spread_over_data_sorted_by_class_alone():
    data = as_data((IMAGES, SORTED))
    for given in (data, as_data(TensorDataset(IMAGES[:, None], SORTED))):
        assert representative_rows(given, 6).tolist() == [0, 15, 30, 45, 60, 75]
    for given in (data.select(torch.randperm(90)), as_data(IMAGES)):
        assert representative_rows(given, 6) is None
    assert representative_rows(data, 90) is None and representative_rows(data, None) is None


@pytest.mark.parametrize("binarize", [False, True])
def test_rows_are_taken_out_of_a_pass(binarize):
    """Binarised pixels are those of the whole pass."""
    whole, parts = (
        Batches((IMAGES, SORTED), size, shuffle=False, binarize=binarize) for size in (90, 8)
    )
    (every,) = whole
    rows = torch.tensor([0, 7, 8, 63])
    found = take(parts, 4, rows)
    assert torch.equal(found.images, every.images[rows])
    assert torch.equal(found.labels, SORTED[rows])
    assert torch.equal(take(parts, 20).images, every.images[:20])
    assert len(take(parts, None).images) == 90


def test_other_items_of_a_dataset_are_not_read():
    read = []

    class Counted(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batches = Batches(Counted(IMAGES[:, None], SORTED), 8, shuffle=False)
    rows = torch.tensor([0, 30, 89])
    read.clear()
    found = take(batches, 3, rows)
    assert read == rows.tolist()
    assert torch.equal(found.images, IMAGES[rows, None]) and found.labels.tolist() == [0, 1, 2]


def trained_on_sorted(folder):
    bright = (IMAGES // 8 + 100 * SORTED[:, None, None]).to(torch.uint8)
    np.savez(folder / "sorted.npz", images=bright.numpy(), labels=SORTED.numpy())
    config = TrainConfig(
        data=str(folder / "sorted.npz"), epochs=1, out=str(folder / "run"), device="cpu",
        model_args={"latent_dim": 2, "network_options": {"hidden": [4]}}, tensorboard="off",
        data_options=DataOptions(held_out=0.5),
    )  # fmt: skip
    trainer = Trainer(config)
    trainer.fit()
    return trainer


@pytest.mark.filterwarnings("ignore:.*sorted by class")
def test_a_runs_measures_and_pictures_are_of_all_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    trainer = trained_on_sorted(tmp_path)
    config = trainer.config
    val = load(config.data, split="val", options=trainer.config.data_options)
    report = evaluate.evaluate_run(config.out, samples=9, num_samples=0)
    rows = torch.arange(9) * len(val) // 9
    assert val.labels[rows].unique().tolist() == [0, 1, 2] and not val.labels[:9].any()
    model = tasks.load_model(config.out).model
    assert report["recon"] == evaluate.evaluate(model, val.images[rows], num_samples=0)["recon"]
    assert torch.equal(some_samples(trainer.val_batches, 9).images, val.images[rows])


@pytest.mark.filterwarnings("ignore:.*sorted by class")
def test_a_samples_number_and_a_masks_rows_are_those_of_the_data(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    trainer = trained_on_sorted(tmp_path)
    config, seen = trainer.config, []

    def traverse(model, code, **_):
        seen.append(code)
        raise ValueError("seen")

    def impute(model, x, *_, **__):
        seen.append(x)
        raise ValueError("seen")

    monkeypatch.setattr(tasks, "traverse", traverse)
    monkeypatch.setattr(tasks, "impute", impute)
    np.save(tmp_path / "mask.npy", np.zeros((9, 1, 4, 4), bool))
    given = [config.out, "--n", "9", "--device", "cpu", "--out", str(tmp_path / "x.png")]
    assert main(["traverse", *given, "--index", "5"]) == 1
    assert main(["inpaint", *given, "--missing", str(tmp_path / "mask.npy")]) == 1
    assert main(["inpaint", *given]) == 1
    images = load(config.data, split="val", options=config.data_options).images
    model, code = tasks.load_model(config.out, device="cpu").model, seen[0]
    torch.testing.assert_close(code, tasks.encode(model, images[5:6])[0])
    assert torch.equal(seen[1], images[:9])
    assert torch.equal(seen[2], images[torch.arange(9) * len(images) // 9])
