"""A rank that fails takes the job down with its reason; and a run goes on with other ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train import ranks
from vae_fast.train import RunFolder, checkpoint

pytestmark = pytest.mark.slow
PATIENCE = 600  # seconds; what hangs would hang for half an hour

# A training whose rank 1 fails at step 7 as sys.argv[1] says; the rest are arguments of vae-fast.
PROGRAM = """
import os, resource, signal, sys
from vae_fast.cli import main
from vae_fast.train.step import Step

take, how = Step.__call__, sys.argv[1]

def failing(self, share, number):
    if os.environ["RANK"] == "1" and number == 7:
        if how == "raises":
            raise ValueError("sample 4711 is no image")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "disk":  # files may grow no further: what a full disk does
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    take(self, share, number)

Step.__call__ = failing
sys.exit(main(sys.argv[2:]))
"""


def arguments(data, out, *more):
    return (
        "train", "--model", "ae", "--data", data, "--batch-size", 50, "--device", "cpu",
        "--epochs", 3, "--log-every", 4, "--model-args.latent_dim", 3, "--tensorboard", "off",
        "--checkpoint.every_steps", 3, "--out", out, *more,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "data.npy", ranks.images(330).squeeze(1).numpy())
    return tmp_path / "data.npy"


def ends(processes):
    """Exit statuses and what was said; a process that hangs fails the test."""
    said = [p.communicate(timeout=PATIENCE) for p in processes]
    return [p.returncode for p in processes], [out + err for out, err in said]


def start(*command):
    return ranks.start(2, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_raises_gives_all_its_reason(tmp_path, data):
    statuses, said = ends(start("-c", PROGRAM, "raises", *arguments(data, tmp_path / "run")))
    assert statuses == [1, 1]
    assert "error: rank 1: sample 4711 is no image" in said[1]
    assert "error: rank 0: rank 1 failed: sample 4711 is no image" in said[0]
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last").state["reached"]["step"] == 6


def test_a_rank_that_is_killed_ends_the_others(tmp_path, data):
    statuses, said = ends(start("-c", PROGRAM, "killed", *arguments(data, tmp_path / "run")))
    assert statuses == [1, -signal.SIGKILL]
    assert "error: rank 0: another rank of this run is gone" in said[0]


def test_torchrun_ends_with_the_reason(tmp_path, data):
    (tmp_path / "program.py").write_text(PROGRAM)
    found = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "program.py"), "raises",
            *map(str, arguments(data, tmp_path / "run", "--distributed", "fsdp")),
        ],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode != 0
    assert "rank 1: sample 4711 is no image" in found.stderr


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_disk_that_is_full_keeps_the_checkpoint_before(tmp_path, data, how):
    if how == "ddp":
        program = PROGRAM.replace('["RANK"] == "1"', '["RANK"] == "0"')
    else:
        program = PROGRAM
    command = arguments(data, tmp_path / "run", "--distributed", how, "--log-every", 1000)
    statuses, said = ends(start("-c", program, "disk", *command))
    assert statuses == [1, 1]
    assert "checkpoint of step 9 can't be written" in said[0] or "File too large" in said[0]
    assert "File too large" in said[1]
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.load_newest(folder).state["reached"]["step"] == 6
    assert not list(folder.glob(".writing*"))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_run_resumes_with_another_number_of_ranks(tmp_path, data, how):
    """2, 1 and 2 ranks in turn: the batches, and so the losses, are those of one never stopped.

    An autoencoder draws no noise, so its losses don't depend on who computes them.
    """

    def rows(name):
        found = RunFolder(tmp_path / name).metrics()
        return [(r["epoch"], r["step"], r["split"]) for r in found], [r["loss"] for r in found]

    def finish(processes):
        statuses, said = ends(processes)
        assert statuses == [0] * len(processes), said

    def resume(size, epochs):
        command = ("-m", "vae_fast", "resume", tmp_path / "cut", "--epochs", epochs)
        finish(
            ranks.start(size, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )

    command = ("-m", "vae_fast", *arguments(data, tmp_path / "whole", "--epochs", 4))
    finish(ranks.start(1, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    # Stopped within an epoch, and within an interval of metrics: at step 9 of 7 an epoch.
    cut = arguments(data, tmp_path / "cut", "--epochs", 4, "--distributed", how)
    program = PROGRAM.replace("number == 7", "number == 10")
    statuses, _ = ends(start("-c", program, "killed", *cut))
    assert statuses[1] == -signal.SIGKILL
    resume(1, 2)
    resume(2, 3)
    resume(1, 4)
    assert rows("cut")[0] == rows("whole")[0]
    assert rows("cut")[1] == pytest.approx(rows("whole")[1], rel=1e-4)

    from vae_fast.cli import main

    run = str(tmp_path / "cut")
    assert main(["evaluate", run, "--device", "cpu", "--n", "20", "--num-samples", "0"]) == 0


def test_one_process_opens_a_run_of_many(tmp_path, data, capsys):
    """Left as FSDP2 wrote it, with bf16, a moving average and the noise of a VAE."""
    out = tmp_path / "run"
    command = arguments(
        data, out, "--model", "vae", "--distributed", "fsdp", "--precision", "bf16",
        "--emulate-bf16", "true", "--ema", 0.9,
    )  # fmt: skip
    for _ in ("once", "and resumed"):
        statuses, said = ends(start("-m", "vae_fast", *command))
        assert statuses == [0, 0], said
        command = ("resume", out, "--epochs", 5)
    assert (out / "samples.png").exists()
    from vae_fast.cli import main

    assert (checkpoint.pointed_folder(out / "checkpoints", "last") / "shards").is_dir()
    assert main(["sample", str(out), "--device", "cpu", "--n", "4", "--out", f"{out}/x.npy"]) == 0
    assert np.load(out / "x.npy").shape == (4, 1, 8, 8)
    assert main(["evaluate", str(out), "--device", "cpu", "--n", "20", "--num-samples", "5"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    elbo = [float(row[1]) for row in rows if row[0] == "elbo"]
    assert len(elbo) == 1 and -60 < elbo[0] < -30  # 64 pixels of noise: 64 log 2 = 44.4 nats


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path, data):
    command = arguments(data, tmp_path / "run", "--epochs", 3000, "--log-every", 2000)
    processes = start("-m", "vae_fast", *command)
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + PATIENCE
    while not (checkpoints / "last").exists():
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = ends(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, said
    assert "stopped by SIGTERM at step" in said[0]
    step = checkpoint.load(checkpoints / "last").state["reached"]["step"]
    assert f"at step {step}," in said[0]
