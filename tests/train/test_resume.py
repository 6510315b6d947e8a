"""A resumed run has the bits of an uninterrupted one, wherever it was stopped."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.conftest import NATIVE
from vae_fast.train import CheckpointError, Interrupted, TrainConfig, Trainer, checkpoint, keeping
from vae_fast.train.config import CheckpointConfig

TIMES = ("seconds", "samples_per_second")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the engine handles it."""


def rows_of(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in folder.metrics()]


def assert_same_run(a, b):
    assert rows_of(a.folder) == rows_of(b.folder)
    for name in ("last", "best"):
        one = checkpoint.load(a.folder.checkpoints / name)
        two = checkpoint.load(b.folder.checkpoints / name)
        assert one.path.resolve().name == two.path.resolve().name
        for key, value in one.weights.items():
            assert torch.equal(value, two.weights[key]), key
        one.state["reached"].pop("seconds"), two.state["reached"].pop("seconds")
        for name in ("interval_seconds", "config"):  # how often to checkpoint, for one
            one.state.pop(name), two.state.pop(name)
        assert_same(one.state, two.state)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture
def make(config, clothes):
    """make(name, **changes): a trainer of 2 epochs of 10 steps in its own folder."""

    def make_trainer(name, **changes):
        run = TrainConfig(**{**vars(config), "out": f"{config.out}-{name}", **changes})
        return Trainer(run, train_data=clothes[0], val_data=clothes[1])

    return make_trainer


@pytest.fixture
def resume(clothes):
    def resumed(trainer, **options):
        return Trainer.resume(
            trainer.folder.path, train_data=clothes[0], val_data=clothes[1], **options
        )

    return resumed


@pytest.fixture
def whole(make):
    trainer = make("whole")
    trainer.fit()
    return trainer


def stop_at(trainer, step, error):
    """Make the trainer raise ``error`` when it begins ``step``."""
    take = trainer.step.__class__.__call__

    class Stopping(trainer.step.__class__):
        def __call__(self, *arguments):
            if trainer.progress.step == step:
                raise error
            return take(self, *arguments)

    trainer.step.__class__ = Stopping


@pytest.mark.parametrize("killed_at", [3, 7, 9, 10, 11, 14, 19])
def test_killed_before_any_step(make, resume, whole, killed_at):
    trainer = make("cut", checkpoint=CheckpointConfig(every_steps=3, keep=2))
    stop_at(trainer, killed_at, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    torch.manual_seed(123)  # another process would not have these generators
    random.seed(5)
    np.random.seed(5)
    again = resume(trainer)
    assert 0 < again.progress.step <= killed_at
    again.fit()
    assert_same_run(whole, again)


def test_killed_before_the_first_checkpoint(make, resume, whole):
    trainer = make("cut")
    stop_at(trainer, 5, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    said = []
    again = resume(trainer, say=said.append)
    assert "before its first checkpoint" in said[0]
    again.fit()
    assert_same_run(whole, again)


@pytest.mark.parametrize("moment", ["_write", "_replace_folder", "point", "prune"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_within_a_checkpoint(make, resume, whole, monkeypatch, moment, after):
    trainer = make("cut", checkpoint=CheckpointConfig(every_steps=4))
    do = getattr(checkpoint, moment)
    calls = []

    def killing(*arguments, **options):
        calls.append(moment)
        if len(calls) < 5 or after:
            do(*arguments, **options)
        if len(calls) == 5:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, moment, killing)
        # SIGKILL leaves half a checkpoint behind. An exception would remove it.
        patched.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(keeping, "_remove", lambda *_: None)
        try:
            trainer.fit()
        except Killed:
            pass
    resume(trainer).fit()
    assert_same_run(whole, resume(trainer))


def test_a_damaged_checkpoint_is_passed_over_aloud(make, resume, whole):
    trainer = make("cut", checkpoint=CheckpointConfig(every_steps=3))
    stop_at(trainer, 14, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    newest = checkpoint.step_folders(trainer.folder.checkpoints)[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    said = []
    again = resume(trainer, say=said.append)
    assert newest.name in said[0] and "truncated" in said[0]
    assert again.progress.step < int(newest.name)
    again.fit()
    assert_same_run(whole, again)


def test_a_checkpoint_of_another_model_is_refused(make, resume, whole):
    trainer = make("other", model_args={"latent_dim": 5})
    trainer.fit()
    saved = checkpoint.load(whole.folder.checkpoints / "last")
    with pytest.raises(CheckpointError, match="is of another model, data or configuration"):
        trainer.restore(saved)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_checkpoint_and_leave(make, resume, whole, number):
    before = signal.getsignal(number)
    trainer = make("cut")
    take = trainer.step.__class__.__call__

    class Signalled(trainer.step.__class__):
        def __call__(self, *arguments):
            take(self, *arguments)
            if trainer.progress.step == 12:
                os.kill(os.getpid(), number)

    trainer.step.__class__ = Signalled
    with pytest.raises(Interrupted, match=f"{number.name} at step 13.*vae-fast resume") as caught:
        trainer.fit()
    assert caught.value.signal == number
    assert signal.getsignal(number) is before
    again = resume(trainer)
    assert again.progress.step == 13
    again.fit()
    assert_same_run(whole, again)


def test_a_finished_run_can_be_made_longer(make, resume):
    longer = make("longer", epochs=3)
    longer.fit()
    short = make("short", epochs=2)
    short.fit()
    assert resume(short).fit().loss == short.folder.metrics()[-1]["loss"]
    again = resume(short, epochs=3)
    again.fit()
    assert rows_of(again.folder) == rows_of(longer.folder)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sigkill_twenty_times(tmp_path, monkeypatch, precision):
    """A program killed with SIGKILL at 20 random moments ends with the result of an uninterrupted
    one."""
    np.save(
        tmp_path / "data.npy", np.random.default_rng(0).integers(0, 256, (2000, 8, 8), np.uint8)
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Each process is a fork of one that has only imported what a run imports, which takes seconds.
    context = multiprocessing.get_context("forkserver")
    imports = "jsonargparse matplotlib.figure safetensors.torch torch._dynamo vae_fast.public "
    imports += "vae_fast.cli.train vae_fast.models.registry vae_fast.pictures"
    context.set_forkserver_preload(imports.split())

    def start(*arguments):
        code = (
            f"import sys; from vae_fast.cli import main; sys.exit(main({[*map(str, arguments)]}))"
        )
        process = context.Process(target=exec, args=(code, {}))
        process.start()
        return process

    def ended(process):
        process.join()
        return process.exitcode

    def train(out):
        return start(
            "train", "--data", tmp_path / "data.npy", "--epochs", 40, "--batch-size", 30,
            "--device", "cpu", "--log-every", 7, "--checkpoint.every_steps", 2, "--out", out,
            "--model-args.latent_dim", 3, "--precision", precision, "--emulate-bf16", "true",
        )  # fmt: skip

    def written():
        """When a process wrote its start."""
        file = cut / "environment.json"
        return file.stat().st_mtime_ns if file.exists() else 0

    assert ended(train(tmp_path / "whole")) == 0
    cut, within_a_checkpoint = tmp_path / "cut", 0
    before, process, moments = written(), train(cut), random.Random(0)
    for _ in range(20):
        while process.is_alive() and written() == before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.6))
        process.kill()
        assert ended(process) == -signal.SIGKILL, "it ended before it was killed"
        within_a_checkpoint += any((cut / "checkpoints").glob(".writing-*"))
        before, process = written(), start("resume", cut)
    assert ended(process) == 0
    assert within_a_checkpoint > 0
    one, two = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last") for name in ("whole", "cut")
    )
    assert one.path.resolve().name == two.path.resolve().name == "00002400"
    runners = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert not NATIVE or precision == "bf16" or "by the native runner" in runners[0]["runner"]
    for key, value in one.weights.items():
        assert torch.equal(value, two.weights[key])
    from vae_fast.train import RunFolder

    assert rows_of(RunFolder(tmp_path / "whole")) == rows_of(RunFolder(cut))


@pytest.mark.parametrize("what", ["checkpoint", "row of metrics"])
def test_a_full_disk_is_reported_and_the_previous_checkpoint_resumes(
    make, resume, whole, monkeypatch, what
):
    trainer = make("cut", checkpoint=CheckpointConfig(every_steps=3))
    write = checkpoint._write

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def filling(path, data):
        return (full if trainer.progress.step >= 12 else write)(path, data)

    with monkeypatch.context() as patched:
        if what == "checkpoint":
            patched.setattr(checkpoint, "_write", filling)
        else:
            opened = open

            def refusing(path, mode="r", *arguments, **options):
                if (
                    str(path).endswith("metrics.jsonl")
                    and mode == "a"
                    and trainer.progress.step > 12
                ):
                    full()
                return opened(path, mode, *arguments, **options)

            patched.setattr("builtins.open", refusing)
        with pytest.raises(OSError, match=f"{what}.*can't be written .No space left.*resume"):
            trainer.fit()
    assert not list(trainer.folder.checkpoints.glob(".writing*"))
    again = resume(trainer)
    assert again.progress.step in (10, 15)
    again.fit()
    assert_same_run(whole, again)


def test_an_unreadable_checkpoint_is_set_aside_with_its_rows(make, resume, whole):
    trainer = make("cut", checkpoint=CheckpointConfig(every_steps=3, keep=9))
    stop_at(trainer, 14, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    folders = checkpoint.step_folders(trainer.folder.checkpoints)
    assert [int(f.name) for f in folders] == [3, 6, 9, 10, 12]
    newer, damaged = folders[-1] / "state.json", folders[-2] / "state.json"
    newer.write_text(newer.read_text().replace('"version": 3', '"version": 4'))
    # Version 2 has no checksum to show the damage: a key that a run's state must have is gone.
    content = json.loads(damaged.read_text()) | {"version": 2}
    del content["checksum"], content["bytes"], content["state"]["ranks"]
    damaged.write_text(json.dumps(content))
    rows, said = trainer.folder.metrics(), []
    again = resume(trainer, say=said.append)
    assert again.progress.step == 9
    assert "version 4" in said[0] and "ranks is not valid" in said[1]
    assert sum("set-aside" in line for line in said) == 3
    again.fit()
    assert_same_run(whole, again)
    aside = again.folder.checkpoints / "set-aside-00000012"
    assert '"version": 4' in (aside / "state.json").read_text()
    kept = (again.folder.path / "set-aside-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == rows


def test_metrics_that_are_not_all_there_are_kept(make, resume, whole):
    trainer = make("cut")
    stop_at(trainer, 14, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    file = trainer.folder.path / "metrics.jsonl"
    first, *_ = file.read_text().splitlines()
    file.write_text(first + "\n")
    said = []
    again = resume(trainer, say=said.append)
    assert "metrics.jsonl has 1 rows of the 4 that there were" in said[0]
    assert again.fit().loss == whole.folder.metrics()[-1]["loss"]
    assert (trainer.folder.path / "set-aside-metrics.jsonl").read_text() == first + "\n"
    assert [row["step"] for row in again.folder.metrics()] == [4, 12, 16, 20, 20]


def test_checkpoints_that_are_gone_cost_no_rows(make, resume, whole):
    shutil.rmtree(whole.folder.checkpoints)
    rows, said = whole.folder.metrics(), []
    assert resume(whole, say=said.append).progress.step == 0
    assert whole.folder.metrics() == [] and "set-aside-metrics.jsonl" in said[1]
    kept = (whole.folder.path / "set-aside-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == rows


def test_a_scale_initialised_from_data_resumes_to_the_same_bits(make, resume):
    options = {"likelihood": "gaussian", "likelihood_options": {"variance": "shared"}}
    model_args = {"latent_dim": 4, "network_options": {"hidden": [32]}, **options}
    whole = make("whole", model_args=model_args)
    whole.fit()
    rows = whole.folder.metrics()
    assert rows[0]["recon"] < 784 * 0.9  # 784 * 1.02 from a scale of 1
    for killed_at in (1, 14):
        when = CheckpointConfig(every_steps=1 if killed_at == 1 else 4)
        trainer = make(f"cut-{killed_at}", model_args=model_args, checkpoint=when)
        stop_at(trainer, killed_at, Killed())
        with pytest.raises(Killed):
            trainer.fit()
        again = resume(trainer)
        again.fit()
        assert_same_run(whole, again)


@pytest.mark.parametrize("what", ["data", "folder", "lock"])
def test_files_removed_during_a_run_are_reported(config, clothes, tmp_path, capfd, what):
    """The data cut short, the folder removed, and a link where the lock is to be."""
    program = """
import os, shutil, sys
from vae_fast.cli import main
from vae_fast.train.step import Step
take, (what, data, out) = Step.__call__, sys.argv[1:4]
def taking(self, share, number):
    if number == 12 and what == "data":
        os.truncate(data, 1000)
    if number == 12 and what == "folder":
        shutil.rmtree(out)
    take(self, share, number)
Step.__call__ = taking
sys.exit(main(sys.argv[4:]))
"""
    data, out = tmp_path / "data.npy", tmp_path / "run"
    np.save(data, clothes[0][:1000].numpy())
    if what == "lock":
        out.mkdir()
        (tmp_path / "precious").write_text("precious")
        (out / ".lock").symlink_to(tmp_path / "precious")
    found = subprocess.run(
        [
            sys.executable, "-c", program, what, data, out, "train", "--data", data, "--out", out,
            "--epochs", "2", "--device", "cpu", "--tensorboard", "off", "--batch-size", "100",
            "--model-args.latent_dim", "2",
        ],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 1, found.stderr
    words = {
        "data": "was cut from 784,128 to 1,000 bytes while it was read",
        "folder": "can't be written",
        "lock": ".lock is a link, which is not followed: remove it",
    }[what]
    assert words in found.stderr and "Traceback" not in found.stderr
    assert out.exists() == (what != "folder")
    if what == "data":
        assert checkpoint.load(out / "checkpoints" / "last").state["reached"]["step"] == 9
