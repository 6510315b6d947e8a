"""A run on columns of different scales: when it standardizes them, and that all parts do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import NATIVE
from vae_fast import evaluate, tasks
from vae_fast.cli import main
from vae_fast.data import from_array
from vae_fast.tasks import load_model
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.native import build as build_native
from vae_fast.train.standardize import decide

UNITS = np.array([1.0, 100.0, 1e-3, 1e4])
SHIFTS = np.array([0.0, 500.0, 0.1, -2e4])


def columns(n=600, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 2)) @ draw.normal(size=(2, 4)) + 0.1 * draw.normal(size=(n, 4))
    return (x * UNITS + SHIFTS).astype(np.float32)


def table(x):
    """As a .csv file gives it."""
    return replace(from_array(x, bounded=False), columns=("a", "b", "c", "d"))


def config_of(path, **changes):
    return TrainConfig(
        model_args={"latent_dim": 2, "network_options": {"hidden": [16]}}, batch_size=100, epochs=2,
        log_every=2, device="cpu", tensorboard="off", matmul="mkl", lr=1e-2,
        out=str(path), **changes,
    )  # fmt: skip


def test_which_data_are_standardized(tmp_path):
    real, unit = table(columns()), table(np.random.default_rng(0).random((9, 4), np.float32))
    for data, changes, args, wanted in (
        (real, {}, {}, "on"),
        (real, {}, {"likelihood": "student_t"}, "on"),
        (real, {}, {"likelihood": "poisson"}, "off"),
        (real, {"standardize": "off"}, {"likelihood": "gaussian"}, "off"),
        (unit, {}, {}, "off"),
        (unit, {}, {"likelihood": "gaussian"}, "on"),
        (replace(real, columns=None), {}, {"likelihood": "gaussian"}, "off"),
        (replace(real, columns=None), {"standardize": "on"}, {}, "on"),
    ):
        config = config_of(tmp_path, **changes)
        args = config.model_args = config.model_args | args
        said = decide(config, data, begins=True)
        assert config.standardize == wanted == ("on" if said else "off")
        options = config.model_args.get("likelihood_options", {})
        assert options.get("standardize", False) == (wanted == "on")
        assert "likelihood_options" not in args  # the caller's own dict
        if wanted == "on" and "likelihood" not in args:
            assert config.model_args["likelihood"] == "gaussian" and "gaussian" in said
    for data, changes, args, why in (
        (unit, {}, {}, "lies in .0, 1."),
        (real, {}, {"likelihood": "poisson"}, "poisson, is not of real values"),
        (real, {"model": "vrae"}, {}, "reads steps"),
        (real, {"model": "mine:Model"}, {}, "your own"),
        (from_array(np.full((4, 3), 9, np.uint8)), {}, {}, "is uint8"),
    ):
        config = config_of(tmp_path, standardize="on", **changes)
        config.model_args |= args
        with pytest.raises(ValueError, match=f"standardize on does not fit this run: .*{why}"):
            decide(config, data, begins=True)
    config = config_of(tmp_path, standardize="off")
    config.model_args["likelihood_options"] = {"standardize": True}
    with pytest.raises(ValueError, match="give one"):
        decide(config, real, begins=True)
    old = config_of(tmp_path)  # a run from before there was the choice
    assert decide(old, real, begins=False) == "" and old.standardize == "off"


@pytest.mark.skipif(not NATIVE, reason="there is no native step without kernels")
def test_the_native_step_is_the_eager_one(tmp_path):
    x = columns()
    trainer = Trainer(config_of(tmp_path / "run"), train_data=table(x), val_data=table(x[:100]))
    assert trainer.config.runner == "native"
    step, batch = trainer.step, torch.from_numpy(x[:64])
    native = build_native(trainer.model, step.updates[0].optimizer)
    key = torch.tensor([1, 2])
    found = native.step(batch, lr=0.0, noise_key=key, update=False)
    gradient = step.updates[0].flat.whole.grad.clone()
    trainer.model.zero_grad()
    wanted = trainer.model.loss(batch, noise_key=key)
    wanted.loss.backward()
    assert found.recon == pytest.approx(wanted.recon.item(), rel=1e-5)
    assert found.loss == pytest.approx(wanted.loss.item(), rel=1e-5)
    flat = step.updates[0].flat
    for p, mine in zip(flat.parameters, flat.views(gradient), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-5)
    rows = native.step(
        torch.from_numpy(x), index=torch.arange(64), lr=0.0, noise_key=key, update=False
    )
    assert rows.loss == pytest.approx(found.loss, rel=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run by the command line on an array, and the array."""
    folder = tmp_path_factory.mktemp("columns")
    np.save(folder / "x.npy", columns())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
        assert main(["train", "--data", str(folder / "x.npy"), "--standardize", "on", "--epochs", "20",
                     "--batch-size", "60", "--lr", "1e-2", "--device", "cpu", "--tensorboard", "off",
                     "--model-args.latent_dim", "2", "--model-args.network_options.hidden", "[16]",
                     "--out", str(folder / "run")]) == 0  # fmt: skip
    return folder / "run", columns()


def test_outputs_are_in_the_units_of_the_data(run, tmp_path):
    path, x = run
    model = load_model(path, "last", "cpu").model
    torch.testing.assert_close(model.likelihood.shift, torch.from_numpy(x[:540].mean(0)), rtol=1e-4, atol=1e-4)  # fmt: skip
    for command, name in (
        ("sample", "s"),
        ("reconstruct", "r"),
        ("inpaint", "i"),
        ("denoise", "d"),
    ):
        out = tmp_path / f"{name}.npy"
        more = ["--missing", "0.3"] if command == "inpaint" else []
        assert main([command, str(path), "--n", "60", "--out", str(out), *more]) == 0
        made = np.load(out)
        assert (np.abs(made.mean(0) - x.mean(0)) < 0.5 * x.std(0)).all(), command
        assert (made.std(0) > 0.3 * x.std(0)).all() and (made.std(0) < 2 * x.std(0)).all(), command
    assert np.abs(np.load(tmp_path / "r.npy") - x[540:]).max(0)[3] < 3 * x.std(0)[3]


def test_densities_are_of_the_data(run):
    """The report's ELBO is that of the standardized columns, plus the logs of the scales."""
    path, x = run
    model = load_model(path, "last", "cpu").model
    held = torch.from_numpy(x[540:])
    report = evaluate.evaluate(model, held, num_samples=20)
    assert report["likelihood"] == "gaussian of standardized columns (density)"
    p_x, u = model.likelihood, model.network_input(held)
    model.likelihood = p_x.inner  # the same network, for the standardized columns
    plain = evaluate.evaluate(model, u, num_samples=20)
    volume = p_x.scale.double().log().sum().item()
    for key in ("nll", "recon"):
        assert report[key] == pytest.approx(plain[key] + volume, abs=1e-3)
    assert report["bits_per_dimension"] == pytest.approx(
        plain["bits_per_dimension"] + volume / (4 * math.log(2)), abs=1e-3
    )
    assert report["reconstruction_mse"] == pytest.approx(plain["reconstruction_mse"], rel=1e-4)


def test_a_resumed_run_has_the_same_columns_and_bits(tmp_path):
    x = table(columns())
    given = {"train_data": x, "val_data": x}
    whole = Trainer(config_of(tmp_path / "whole"), **given)
    whole.fit()
    half = config_of(tmp_path / "half")
    half.epochs = 1
    Trainer(half, **given).fit()
    other = table(columns(seed=5))  # the statistics are those of the run's start
    resumed = Trainer.resume(half.out, epochs=2, train_data=x, val_data=other)
    assert resumed.config.standardize == "on"
    resumed.fit()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    with pytest.raises(ValueError, match="standardize can't change"):
        Trainer.resume(half.out, changes={"standardize": "off"}, **given)


@pytest.mark.slow
def test_it_is_exported_and_loaded(run, tmp_path):
    from vae_fast.hub.export import export

    path, x = run
    model = load_model(path, "best", "cpu").model
    held = torch.from_numpy(x[:7])
    export(model, tmp_path, parts=("encoder", "decoder"))
    encoder, decoder = (
        torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encoder", "decoder")
    )
    mu, _ = encoder(held)
    torch.testing.assert_close(mu, model.encode(held).mu, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder(mu), tasks.reconstruct(model, held), rtol=1e-4, atol=1e-2)
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from vae_fast import hub

    hub.pretrained(path).save_pretrained(tmp_path / "model")
    again = hub.pretrained_class().from_pretrained(tmp_path / "model")
    assert torch.equal(again.reconstruct(held), model.reconstruct(held))


def test_a_table_without_other_options(tmp_path, capsys):
    """The simplest command: only a file."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
    from pyarrow import parquet

    path, x = tmp_path / "t.parquet", columns(200)
    parquet.write_table(pa.table({name: x[:, i] for i, name in enumerate("abcd")}), path)
    assert main(["train", "--data", str(path), "--epochs", "1", "--device", "cpu", "--tensorboard",
                 "off", "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    assert "t.parquet: columns are standardized, the likelihood gaussian" in capsys.readouterr().out
    assert "standardize: 'on'" in (tmp_path / "run" / "config.yaml").read_text()
    torch.manual_seed(0)
    # Later rows may have the columns in another order, but must have the same ones.
    found = []
    for order in ("abcd", "dbca"):
        parquet.write_table(pa.table({n: x[:, "abcd".index(n)] for n in order}), path)
        assert main(["encode", str(tmp_path / "run"), "--data", str(path), "--out", str(tmp_path / "z.npy")]) == 0  # fmt: skip
        found.append(np.load(tmp_path / "z.npy"))
    assert np.array_equal(*found)
    parquet.write_table(pa.table({n: x[:, 0] for n in "abce"}), path)
    assert main(["encode", str(tmp_path / "run"), "--data", str(path)]) != 0
    assert "t.parquet lacks d and has also e" in capsys.readouterr().err
    parquet.write_table(pa.table({"a": x[:, 0], "time": 1.7e9 + x[:, 0].astype(float)}), path)
    with pytest.raises(ValueError, match="column time has the mean 1.7e.09"):
        load_table(path)


def load_table(path):
    from vae_fast.data import as_data

    return as_data(path, bounded=False)
