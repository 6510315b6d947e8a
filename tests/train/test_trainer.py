import json
import math
import multiprocessing
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from vae_fast.evaluate.run import evaluate_run
from vae_fast.models import BetaVAE
from vae_fast.tasks import load_model
from vae_fast.train import RunFolder, TrainConfig, Trainer, TrainingError


@pytest.fixture
def fitted(config, clothes):
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    return trainer, trainer.fit()


def test_rows_of_metrics(fitted):
    trainer, result = fitted
    rows = trainer.folder.metrics()
    # 10 steps an epoch, a row every 4 and at the epoch's end.
    assert [(r["epoch"], r["step"], r["split"]) for r in rows] == [
        (1, 4, "train"), (1, 8, "train"), (1, 10, "train"), (1, 10, "val"),
        (2, 12, "train"), (2, 16, "train"), (2, 20, "train"), (2, 20, "val"),
    ]  # fmt: skip
    more = {
        "train": {"lr", "grad_norm", "skipped"},
        "val": {"active_units", "kl_per_dimension"},
    }
    for row in rows:
        assert set(row) == {
            "epoch", "step", "split", "loss", "recon", "kl", "seconds", "samples_per_second", "beta",
        } | more[row["split"]]  # fmt: skip
        assert row["loss"] == pytest.approx(row["recon"] + row["kl"], rel=1e-5)
        assert row["seconds"] > 0 and row["samples_per_second"] > 0
    assert rows[-1]["loss"] == result.loss
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_first_row_is_the_mean_of_plain_training(config, clothes):
    """The engine's numbers equal those of a handwritten loop with the same noise."""
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    torch.manual_seed(0)
    by_hand = Trainer(
        TrainConfig(**{**vars(config), "out": config.out + "2"}),
        train_data=clothes[0],
        val_data=clothes[1],
    )
    losses = []
    optimizer = torch.optim.Adam(by_hand.model.parameters(), lr=config.lr)
    torch.manual_seed(5)
    for batch in by_hand.batches:
        loss = by_hand.model.loss(batch.images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == 4:
            break
    torch.manual_seed(5)
    trainer.fit()
    assert trainer.folder.metrics()[0]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_validation_is_the_mean_over_samples_and_leaves_the_noise_alone(config, clothes):
    # 200 validation samples in batches of 150 and 50: a mean of batch means would be wrong.
    config.batch_size = 150
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    trainer.open_displays(ExitStack())
    before = torch.get_rng_state()
    trainer.interval_began = 0.0
    trainer.validate()
    assert torch.equal(before, torch.get_rng_state())
    trainer.validate()
    found, again = trainer.folder.metrics()
    assert found["loss"] == again["loss"]
    torch.manual_seed(config.seed)
    with torch.no_grad():
        parts = [
            trainer.model.loss(images, reduction="none").loss for images in clothes[1].split(150)
        ]
    assert found["loss"] == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)


def test_beta_weighs_the_kl(config, clothes):
    config.objective.beta = 4.0
    config.epochs = 1
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    result = trainer.fit()
    assert result.loss == pytest.approx(result.recon + 4.0 * result.kl, rel=1e-5)


def test_beta_vae_has_its_own_default(config, clothes):
    config.model = "beta-vae"
    config.epochs = 1
    result = Trainer(config, train_data=clothes[0], val_data=clothes[1]).fit()
    assert result.loss == pytest.approx(result.recon + 4.0 * result.kl, rel=1e-5)


def test_same_seed_same_run_and_another_seed_another(config, clothes):
    def losses(name, seed):
        run = TrainConfig(**{**vars(config), "out": f"{config.out}-{name}", "seed": seed})
        trainer = Trainer(run, train_data=clothes[0], val_data=clothes[1])
        trainer.fit()
        return [row["loss"] for row in trainer.folder.metrics()]

    assert losses("a", 0) == losses("b", 0)
    assert losses("a2", 0) != losses("c", 1)


def test_the_folder_of_a_run(fitted, config):
    trainer, result = fitted
    path = trainer.folder.path
    assert RunFolder(path).config() == trainer.config
    assert config.runner == "auto" and trainer.config == replace(
        config, runner=trainer.config.runner
    )
    assert yaml.safe_load((path / "config.yaml").read_text())["batch_size"] == 100
    start = json.loads((path / "environment.json").read_text())[0]
    assert start["torch"] == torch.__version__ and start["seed"] == 0 and start["device"] == "cpu"
    assert [p.name for p in result.pictures] == [
        "reconstructions.png", "samples.png", "curves.png",
    ]  # fmt: skip
    for picture in result.pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert not [p for p in path.iterdir() if p.name.startswith(".")]


def test_last_checkpoint_is_the_trained_model_and_best_the_lowest(fitted):
    trainer, _ = fitted
    restored = load_model(trainer.folder.path, "last", "cpu")
    assert restored.step == 20
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(restored.model.state_dict()[name], value)
    rows = [r for r in trainer.folder.metrics() if r["split"] == "val"]
    best = min(rows, key=lambda row: row["loss"])
    assert load_model(trainer.folder.path, "best", "cpu").step == best["step"]
    with pytest.raises(ValueError, match="has no checkpoint '7': it has best, last, 0"):
        load_model(trainer.folder.path, 7)


def test_best_stays_when_the_validation_loss_rises(config, clothes, monkeypatch):
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    losses = iter([5.0, 6.0])
    log = trainer.log

    def risen(split, means, *arguments, **more):
        if split == "val":
            means |= {"recon": next(losses), "kl": 0.0}
        log(split, means, *arguments, **more)

    monkeypatch.setattr(trainer, "log", risen)
    trainer.fit()
    assert load_model(trainer.folder.path, "best", "cpu").step == 10
    assert load_model(trainer.folder.path, "last", "cpu").step == 20


def test_a_run_is_not_written_over(fitted, config, clothes):
    before = (fitted[0].folder.path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run.*--out.*vae-fast resume"):
        Trainer(config, train_data=clothes[0], val_data=clothes[1])
    assert (fitted[0].folder.path / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written(config, clothes, tmp_path):
    (tmp_path / "file").write_text("")
    config.out = str(tmp_path / "file" / "run")
    with pytest.raises(OSError, match="the output folder can't be written"):
        Trainer(config, train_data=clothes[0], val_data=clothes[1])


def test_a_bad_model_leaves_no_folder(config, clothes):
    config.model = "vea"
    with pytest.raises(ValueError, match="unknown model 'vea'; known: .*vae"):
        Trainer(config, train_data=clothes[0], val_data=clothes[1])
    config.model, config.model_args = "vae", {"latents": 3}
    with pytest.raises(ValueError, match="model_args .*latents.* don't fit vae"):
        Trainer(config, train_data=clothes[0], val_data=clothes[1])
    assert not Path(config.out).exists()


def test_data_with_nan_is_refused(config, clothes):
    spoilt = clothes[0].float() / 255
    spoilt[3, 0, 5, 5] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        Trainer(config, train_data=spoilt, val_data=clothes[1].float() / 255)


def test_shapes_of_both_splits_must_agree(config, clothes):
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), validation samples \(1, 14, 14\)"):
        Trainer(config, train_data=clothes[0], val_data=clothes[1][:, :, ::2, ::2])


def test_runs_without_a_name_are_numbered(config, clothes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        run = TrainConfig(**{**vars(config), "out": None})
        trainer = Trainer(run, train_data=clothes[0], val_data=clothes[1])
        names.append(trainer.folder.path.name)
    assert names == ["vae-array", "vae-array-2", "vae-array-3"]


def test_vectors_have_no_pictures_but_curves(config):
    rows = torch.rand(300, 12, generator=torch.Generator().manual_seed(0))
    result = Trainer(config, train_data=rows, val_data=rows[:50]).fit()
    assert [p.name for p in result.pictures] == ["curves.png"]
    assert 0 < result.recon < 12 * math.log(2) * 1.2


def test_bf16_follows_fp32(config, clothes):
    losses = {}
    for precision in ("fp32", "bf16"):
        changes = {"out": f"{config.out}-{precision}", "precision": precision}
        run = TrainConfig(**{**vars(config), **changes, "emulate_bf16": True})
        trainer = Trainer(run, train_data=clothes[0], val_data=clothes[1])
        losses[precision] = trainer.fit().loss
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


def test_metrics_cut_short_by_a_kill_are_read(fitted):
    folder = fitted[0].folder
    whole = folder.metrics()
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "st')
    assert folder.metrics() == whole
    folder.keep_metrics(4)
    assert folder.metrics() == whole[:4]


def test_loss_falls_to_a_measured_bound(tmp_path):
    """fashion10k, three epochs at the default settings; measured 271.5 nats per sample."""
    result = Trainer(TrainConfig(epochs=3, device="cpu", out=str(tmp_path / "run"))).fit()
    assert 260 < result.loss < 275
    assert 12 < result.kl < 18


def test_steps_that_are_not_finite_stop_the_run_and_say_why(config, clothes):
    config.lr, config.optimizer.max_not_finite = 1e30, 4
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    with pytest.raises(TrainingError, match=r"not finite in the last 7 steps .*try|Try a lower"):
        trainer.fit()
    row = trainer.folder.metrics()[-1]
    assert row["loss"] is None and row["skipped"] == 7 and row["step"] == 8
    # The first step blew the weights up but left them finite; none after it was taken.
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_data_given_in_python_are_not_confused_with_named_data(tmp_path):
    images = torch.rand(120, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(epochs=1, batch_size=40, device="cpu", out=str(tmp_path / "run"))
    Trainer(config, train_data=images, val_data=images[:40]).fit()
    words = r"trained on data given in Python \(.*\)"
    with pytest.raises(ValueError, match=words):
        Trainer.resume(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match=words):
        evaluate_run(tmp_path / "run", num_samples=0)
    again = Trainer.resume(tmp_path / "run", epochs=2, train_data=images, val_data=images[:40])
    assert again.fit().loss > 0


def test_a_run_that_ends_not_finite_says_so(tmp_path):
    config = TrainConfig(epochs=1, batch_size=40, lr=1e30, device="cpu", out=str(tmp_path / "run"))
    images = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TrainingError, match=r"not finite. Try a lower --lr \(it is 1e\+30\)"):
        Trainer(config, train_data=images, val_data=images).fit()
    with pytest.raises(ValueError, match="has no checkpoint 'best': it has last, 0"):
        load_model(tmp_path / "run")


def test_a_known_failure_leaves_no_folder(tmp_path):
    images = torch.rand(20, 1, 8, 8)
    config = TrainConfig(model="cvae", device="cpu", out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="cvae is conditioned on labels, and .* has none"):
        Trainer(config, train_data=images, val_data=images)
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_another_run_are_not_continued(tmp_path):
    (tmp_path / "run" / "checkpoints" / "00000009").mkdir(parents=True)
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(TrainConfig(device="cpu", out=str(tmp_path / "run")))


class NoTerms(BetaVAE):
    def loss(self, x, **options):
        return tuple(super().loss(x, **options))


def test_a_loss_of_another_kind_is_named(tmp_path):
    images = torch.rand(20, 1, 8, 8)
    config = TrainConfig(device="cpu", batch_size=10, out=str(tmp_path / "run"))
    trainer = Trainer(config, train_data=images, val_data=images)
    trainer.model.__class__ = NoTerms
    with pytest.raises(TypeError, match="NoTerms's loss must return a LossOutput.*a tuple"):
        trainer.fit()


def _hold(path, held):
    folder = RunFolder(path)
    folder.lock()
    held.set()
    time.sleep(120)


def test_one_process_trains_a_run_at_a_time(tmp_path):
    images = torch.rand(20, 1, 8, 8)
    config = TrainConfig(epochs=1, device="cpu", batch_size=10, out=str(tmp_path / "run"))
    given = {"train_data": images, "val_data": images}
    Trainer(config, **given).fit()
    fork = multiprocessing.get_context("fork")  # it only opens a file
    held = fork.Event()
    other = fork.Process(target=_hold, args=(tmp_path / "run", held))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(ValueError, match="is being trained by another process: wait"):
            Trainer.resume(tmp_path / "run", epochs=2, **given)
    finally:
        other.kill()
        other.join()
    Trainer.resume(tmp_path / "run", epochs=2, **given).fit()
    assert not (tmp_path / "run" / ".lock").exists()
