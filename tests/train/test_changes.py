"""Changes of a resumed run are reported and applied; weights are loaded from another run."""

import pytest
import torch
import yaml

from vae_fast.tasks import load_model
from vae_fast.train import CheckpointError, TrainConfig, Trainer, checkpoint
from vae_fast.train.config import OptimizerConfig


@pytest.fixture
def data(clothes):
    return {"train_data": clothes[0][:300], "val_data": clothes[1][:50]}


@pytest.fixture
def run(config, data):
    """A run of 1 epoch of 3 steps."""
    config.epochs = 1
    trainer = Trainer(config, **data)
    trainer.fit()
    return trainer.folder


def resume(folder, data, **options):
    said = []
    return Trainer.resume(folder.path, say=said.append, **options, **data), said


def edit(folder, **changes):
    file = folder.path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def moved(trainer, by):
    """The first weight's change in the next epoch, in units of the learning rate ``by``."""
    before = trainer.model.decoder.state_dict()
    before = {k: v.clone() for k, v in before.items()}
    trainer.fit()
    after = trainer.model.decoder.state_dict()
    return max((after[k] - before[k]).abs().max().item() for k in before) / by


def test_a_new_learning_rate_is_used_reported_and_saved(run, data):
    trainer, said = resume(run, data, epochs=2, changes={"lr": 1e-5, "optimizer.clip_norm": 9.0})
    assert said[:3] == [
        "lr: 1e-05 from here on, as you asked; it was 0.001",
        "optimizer.clip_norm: 9.0 from here on, as you asked; it was 0.0",
        "epochs: 2 from here on, as you asked; it was 1",
    ]
    assert moved(trainer, by=1e-5) < 6  # 3 steps
    assert run.metrics()[-2]["lr"] == 1e-5
    again, said = resume(run, data, epochs=2)  # whoever resumes it next has it too
    assert again.config.lr == 1e-5 and again.config.epochs == 2 and said == []


@pytest.mark.parametrize("name", ["model", "model_args", "seed", "batch_size", "optimizer.name"])
def test_settings_that_checkpoints_depend_on_cannot_change(run, data, name):
    with pytest.raises(ValueError, match=f"{name} can't change when a run.*train --init-from"):
        resume(run, data, changes={name: "x"})
    new = {
        "model": "beta-vae", "model_args": {**run.config().model_args, "likelihood": "laplace"},
        "seed": 5, "batch_size": 50, "optimizer.name": {**vars(OptimizerConfig(name="adamw"))},
    }[name]  # fmt: skip
    edit(run, **{name.split(".")[0]: new})
    before = {p: p.stat().st_mtime_ns for p in run.checkpoints.rglob("*")}
    with pytest.raises(CheckpointError, match=f"config.yaml has {name}: .*put it back"):
        resume(run, data)
    assert {p: p.stat().st_mtime_ns for p in run.checkpoints.rglob("*")} == before


def test_a_misspelt_change_names_the_nearest(run, data):
    with pytest.raises(ValueError, match="did you mean 'optimizer.clip_norm'"):
        resume(run, data, changes={"optimizer.clip_nrom": 1})


def test_an_edited_config_is_used_and_reported(run, data):
    optimizer = vars(OptimizerConfig(args={"weight_decay": 0.25, "betas": [0.5, 0.9]}))
    edit(run, lr=0.002, epochs=2, optimizer=dict(optimizer), ema=0.5)
    trainer, said = resume(run, data)
    arguments = "{'betas': [0.5, 0.9], 'weight_decay': 0.25}"
    assert said == [
        "epochs: 2 from config.yaml; the checkpoint is from 1",
        "lr: 0.002 from config.yaml; the checkpoint is from 0.001",
        "ema: 0.5 from config.yaml; the checkpoint is from 0.0",
        f"optimizer.args: {arguments} from config.yaml; the checkpoint is from {{}}",
    ]
    (group,) = trainer.step.updates[0].optimizer.param_groups
    assert group["weight_decay"] == 0.25 and list(group["betas"]) == [0.5, 0.9]
    assert group["eps"] == 1e-8
    average = trainer.step.average.state_dict()
    for name, value in trainer.model.named_parameters():  # it begins with the weights
        assert torch.equal(average[name], value)
    trainer.fit()
    optimizer["args"] = {}
    edit(run, optimizer=dict(optimizer), epochs=3)
    trainer, said = resume(run, data)
    assert len(said) == 2 and trainer.step.updates[0].optimizer.param_groups[0]["weight_decay"] == 0


def test_changed_data_of_the_same_shape_are_reported(run, clothes):
    other = {"train_data": clothes[0][:300].flip(0), "val_data": clothes[1][:50]}
    from vae_fast.data import from_array

    other["train_data"] = from_array(other["train_data"], name="other")
    _, said = resume(run, other)
    assert said == ["data: python:other from config.yaml; the checkpoint is from python:array"]


def test_a_run_starts_from_the_weights_of_another(run, config, data, tmp_path, capsys):
    def begin(name, **changes):
        new = {"out": str(tmp_path / name), "init_from": str(run.path), "seed": 3, **changes}
        trainer = Trainer(TrainConfig(**{**vars(config), **new}), **data)
        return trainer, capsys.readouterr().out

    best = load_model(run.path, "best", "cpu").model.state_dict()
    trainer, said = begin("same", model="beta-vae")
    assert f"starts from the best weights of {run.path}: {len(best)} of this model's" in said
    assert "there" not in said and "here" not in said
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best[name]), name

    hidden = {"latent_dim": 6, "network_options": {"hidden": [32]}}
    trainer, said = begin("wider", model_args=hidden)
    assert "of another shape: " in said and "(8, 32) there, (12, 32) here" in said
    own, fresh = trainer.model.state_dict(), begin("fresh", model_args=hidden, init_from=None)[0]
    for name, value in fresh.model.state_dict().items():
        expected = best[name] if best[name].shape == value.shape else value
        assert torch.equal(own[name], expected), name

    # A run that goes on has its own weights, whatever became of the other.
    trainer, _ = begin("goes-on")
    trainer.fit()
    run.path.rename(tmp_path / "elsewhere")
    again, _ = resume(trainer.folder, data)
    assert again.progress.step == 3
    with pytest.raises(ValueError, match="is not the folder of a run"):
        begin("nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_no_weight_fits_or_there_is_no_checkpoint(run, config, data, tmp_path):
    new = {**vars(config), "out": str(tmp_path / "new"), "init_from": str(run.path)}
    other = TrainConfig(**{**new, "model": "hvae", "model_args": {}})
    with pytest.raises(ValueError, match="no weight of .* fits this model"):
        Trainer(other, **data)
    for pointer in ("best", "last"):
        (run.checkpoints / pointer).unlink()
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        Trainer(TrainConfig(**new), **data)
    assert not (tmp_path / "new").exists()


def test_a_learned_scale_is_loaded_and_not_initialised_again(config, data, tmp_path):
    config.epochs = 1
    options = {"likelihood": "gaussian", "likelihood_options": {"variance": "shared"}}
    config.model_args = {**config.model_args, **options}
    trainer = Trainer(config, **data)
    trainer.fit()
    file = checkpoint.pointed_folder(trainer.folder.checkpoints, "best") / "model.safetensors"
    assert file.exists()
    new = {**vars(config), "out": str(tmp_path / "new"), "init_from": config.out, "lr": 1e-9}
    other = Trainer(TrainConfig(**new), **data)
    scale = other.model.likelihood.logvar.item()
    assert scale == trainer.model.likelihood.logvar.item()
    other.fit()
    assert other.model.likelihood.logvar.item() == pytest.approx(scale, abs=1e-6)


def test_the_command_line_has_both(run, data, capsys, tmp_path):
    import numpy as np

    from vae_fast.cli import main

    np.save(tmp_path / "x.npy", data["train_data"].numpy())
    out, flags = str(tmp_path / "a"), ["--device", "cpu", "--tensorboard", "off"]
    start = ["train", "--data", str(tmp_path / "x.npy"), "--epochs", "1", *flags]
    assert main([*start, "--out", out, "--model-args", '{"latent_dim": 2}']) == 0
    assert main(["resume", out, "--lr", "1e-4", "--epochs", "2", "--optimizer.clip-norm=3"]) == 0
    said = capsys.readouterr().out
    assert "lr: 0.0001 from here on, as you asked; it was 0.001" in said
    assert "optimizer.clip_norm: 3.0" in said and "Validation loss" in said
    assert main(["resume", out, "--lr", "-1"]) != 0
    assert main([*start, "--init-from", out, "--out", f"{out}b"]) == 0
    assert "starts from the best weights" in capsys.readouterr().out
