"""The calls of callbacks, and the loggers' calls of Weights & Biases and MLflow."""

import math
import sys
import types

import pytest

from vae_fast.train import Callback, Trainer


class Told(Callback):
    def __init__(self):
        self.calls = []

    def on_start(self, trainer):
        self.calls.append(("start", trainer.progress.step))

    def on_step(self, trainer):
        self.calls.append(("step", trainer.progress.step))

    def on_row(self, trainer, row):
        self.calls.append(("row", row["split"], row["step"]))

    def on_epoch(self, trainer, row):
        assert row["split"] == "val" and "kl_per_dim" in row or "loss" in row
        self.calls.append(("epoch", trainer.progress.epoch))

    def on_checkpoint(self, trainer, path):
        assert (path / "state.json").exists()
        self.calls.append(("checkpoint", int(path.name)))

    def on_end(self, trainer, error):
        self.calls.append(("end", type(error)))


def of(config, clothes, *callbacks):
    return Trainer(config, train_data=clothes[0], val_data=clothes[1], callbacks=callbacks)


def test_callbacks_are_called_in_order(config, clothes):
    config.log_every, config.max_steps = 10, 12
    told = Told()
    trainer = of(config, clothes, told)
    trainer.fit()
    assert trainer.step.runner.name != "eager" or trainer.config.runner == "eager"
    assert told.calls == [
        ("start", 0),
        *(("step", n) for n in range(1, 11)),
        ("row", "train", 10), ("row", "val", 10), ("epoch", 1), ("checkpoint", 10),
        ("step", 11), ("step", 12),
        ("row", "train", 12), ("row", "val", 12), ("epoch", 1), ("checkpoint", 12),
        ("end", type(None)),
    ]  # fmt: skip
    again = Told()
    options = {"train_data": clothes[0], "val_data": clothes[1], "callbacks": [again]}
    Trainer.resume(trainer.folder.path, changes={"max_steps": 13}, **options).fit()
    assert again.calls[:2] == [("start", 12), ("step", 13)]


def test_an_error_in_a_callback_ends_the_run_and_reaches_all(config, clothes):
    class Stop(Callback):
        def on_step(self, trainer):
            if trainer.progress.step == 3:
                raise RuntimeError("enough")

    told = Told()
    with pytest.raises(RuntimeError, match="enough"):
        of(config, clothes, told, Stop()).fit()
    assert told.calls[-1] == ("end", RuntimeError)


@pytest.fixture
def wandb(monkeypatch):
    """A fake wandb module that records its calls."""
    module, module.calls = types.ModuleType("wandb"), []

    class Run:
        id = "abc"

        def log(self, values, step):
            module.calls.append(("log", values, step))

        def finish(self, exit_code):
            module.calls.append(("finish", exit_code))

    def init(**options):
        module.calls.append(("init", options))
        return Run()

    module.init, module.Image = init, lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_has_rows_pictures_and_the_same_run_again(config, clothes, wandb, monkeypatch):
    config.log_to, config.max_steps = "wandb", 4
    trainer = of(config, clothes)
    picture = trainer.folder.path / "samples.png"
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [picture])
    monkeypatch.setattr("vae_fast.train.tensorboard.TensorBoard.on_picture", lambda *_: None)
    trainer.fit()
    (_, options), *logs, finish = wandb.calls
    assert options["name"] == "run" and options["id"] is None and options["config"]["lr"] == 1e-3
    (_, train, step), (_, val, _), (_, pictures, _) = logs
    assert step == 4 and math.isfinite(train["train/loss"]) and "train/lr" in train
    assert val["val/loss"] == pytest.approx(trainer.last_validation()["loss"])
    assert pictures == {"samples": ("image", str(picture))} and finish == ("finish", 0)
    wandb.calls.clear()
    Trainer.resume(
        trainer.folder.path, changes={"max_steps": 5}, train_data=clothes[0], val_data=clothes[1]
    ).fit()
    assert wandb.calls[0][1]["id"] == "abc" and wandb.calls[1][2] == 5


def test_mlflow_has_parameters_rows_and_the_same_run_again(config, clothes, monkeypatch):
    module, calls = types.ModuleType("mlflow"), []

    def start_run(**options):
        calls.append(("start_run", options))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="77"))

    module.start_run = start_run
    for name in ("log_params", "log_metrics", "log_artifact", "end_run"):
        setattr(module, name, lambda *a, _name=name, **k: calls.append((_name, *a, k)))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    config.log_to, config.max_steps = "mlflow", 4
    trainer = of(config, clothes)
    trainer.fit()
    names = [name for name, *_ in calls]
    assert names == ["start_run", "log_params", "log_metrics", "log_metrics", "end_run"]
    assert calls[1][1]["optimizer.name"] == "adam" and calls[2][2] == {"step": 4}
    assert calls[-1][1] == "FINISHED"
    calls.clear()
    again = Trainer.resume(
        trainer.folder.path,
        changes={"max_steps": 6},
        train_data=clothes[0],
        val_data=clothes[1],
        callbacks=[Failing()],
    )
    with pytest.raises(ZeroDivisionError):
        again.fit()
    assert calls[0] == ("start_run", {"run_id": "77"}) and calls[-1][1] == "FAILED"


class Failing(Callback):
    def on_step(self, trainer):
        raise ZeroDivisionError


def test_a_missing_logger_is_an_error_before_a_folder_is_made(
    config, clothes, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config.log_to = "mlflow"
    with pytest.raises(
        ModuleNotFoundError, match="--log-to mlflow needs mlflow.*pip install mlflow"
    ):
        of(config, clothes)
    assert not (tmp_path / "run").exists()
    config.log_to = "elsewhere"
    with pytest.raises(ValueError, match="log_to 'elsewhere' is unknown: it is one of none, wandb"):
        of(config, clothes)
