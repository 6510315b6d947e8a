"""What a run says before its first row of metrics."""

import numpy as np
import pytest

from vae_fast.data import DataOptions
from vae_fast.train import TrainConfig, Trainer, opening


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    images = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "small.npy", images)
    options = {"hidden": [8]}
    return Trainer(
        TrainConfig(
            model="vae",
            model_args={"latent_dim": 2, "network_options": options},
            data=str(tmp_path / "small.npy"),
            batch_size=9,
            epochs=3,
            device="cpu",
            out=str(tmp_path / "run"),
        )
    )


def test_model_data_steps_and_device_come_first(trainer, capsys):
    trainer.fit()
    first, second, runner, *_ = capsys.readouterr().out.splitlines()
    count = (16 * 8 + 8) + 2 * (8 * 2 + 2) + (2 * 8 + 8) + (8 * 16 + 16)
    assert first.startswith(f"vae, {count} parameters, on ")
    assert first.endswith("90 samples of 1x4x4, 10 more for validation")
    assert second.startswith("30 steps of 9 samples, 10 an epoch, on the CPU with ")
    assert runner.startswith("Steps are taken by the ")
    Trainer.resume(trainer.folder.path, changes={"epochs": 4}).fit()
    again = next(line for line in capsys.readouterr().out.splitlines() if " an epoch, on" in line)
    assert again.startswith("10 steps of 9 samples, the last of 40, 10 an epoch, ")


def test_a_large_folder_of_images_is_better_packed(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(20):
        image.fromarray(np.full((4, 4), i, np.uint8)).save(photos / f"{i}.png")
    config = TrainConfig(data=str(photos), out=str(tmp_path / "run"), device="cpu")
    config.data_options, config.batch_size = DataOptions(size=3, damaged="skip"), 9
    assert "decodes" not in opening.opening(Trainer(config))
    monkeypatch.setattr(opening, "MANY", 18)
    config.out = str(tmp_path / "run2")
    said = opening.opening(Trainer(config)).splitlines()[-1]
    assert f"vae-fast pack {photos} FOLDER --data.size 3 --data.damaged skip, and" in said


def test_an_estimate_is_printed_once_without_rows(trainer, capsys, monkeypatch):
    monkeypatch.setattr(opening, "SOON", 0.0)
    monkeypatch.setattr(opening.sys.stderr, "isatty", lambda: False)
    now = iter(range(100, 200))  # every step takes a second
    monkeypatch.setattr(opening.time, "perf_counter", lambda: next(now))
    said = []
    estimate = opening.Estimate()
    trainer.display = type("Display", (), {"say": lambda _, text: said.append(text)})()
    estimate.on_start(trainer)
    for step in range(1, 6):
        trainer.progress.step = step
        estimate.on_step(trainer)
    assert said == ["step 2 of 30: about 28 s left"]
    estimate.on_start(trainer)
    estimate.on_row(trainer, {})
    for step in range(6, 10):
        trainer.progress.step = step
        estimate.on_step(trainer)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations_are_as_people_say_them(seconds, text):
    assert opening.duration(seconds) == text
