"""The autoencoder with latent maps in the engine: resumed to the same bits, and on two ranks."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from vae_fast.train import TrainConfig, Trainer, checkpoint
from vae_fast.train.config import CheckpointConfig, OptimizerConfig

ARGS = {
    "channels": 4, "multipliers": [1, 1, 2], "groups": 2, "z_channels": 2, "attention": [7],
    "dropout": 0.1, "checkpointing": "blocks",
}  # fmt: skip


class Killed(BaseException):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_was_cut_ends_in_the_same_bits(tmp_path, clothes, precision):
    """Dropout, latent noise and the optimizer's state of convolutions included."""
    train, val = (c[:n, :, 8:20, 8:20] for c, n in zip(clothes, (60, 20), strict=True))
    images = {"train_data": train, "val_data": val}

    def trainer(name):
        config = TrainConfig(
            model="autoencoder-kl", model_args={**ARGS, "attention": [6]}, epochs=2, batch_size=20,
            device="cpu", ema=0.9, precision=precision, emulate_bf16=True, tensorboard="off",
            out=str(tmp_path / name),
            optimizer=OptimizerConfig(name="adamw"), checkpoint=CheckpointConfig(every_steps=2),
        )  # fmt: skip
        return Trainer(config, **images)

    whole = trainer("whole")
    whole.fit()
    cut = trainer("cut")
    take = type(cut.step).__call__

    class Stopping(type(cut.step)):
        def __call__(self, *arguments):
            if cut.progress.step == 5:
                raise Killed
            return take(self, *arguments)

    cut.step.__class__ = Stopping
    with pytest.raises(Killed):
        cut.fit()
    torch.manual_seed(99)
    again = Trainer.resume(cut.folder.path, **images)
    assert again.progress.step == 4
    again.fit()
    one, two = (checkpoint.load(t.folder.checkpoints / "last") for t in (whole, again))
    assert one.weights.keys() == two.weights.keys()
    for name, weights in one.weights.items():
        assert torch.equal(weights, two.weights[name]), name
    start = trainer("fresh").model.state_dict()
    moved = [not torch.equal(start[name], weights) for name, weights in one.weights.items()]
    assert sum(moved) > 0.9 * len(moved)


def on_ranks(size, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in map(str, range(size)):
        environment = os.environ | {
            "WORLD_SIZE": str(size), "RANK": rank, "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "vae_fast", *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=environment))
    assert [p.wait() for p in processes] == [0] * size


@pytest.mark.slow
def test_two_ranks_train_like_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 40, (22, 2, 2), dtype=np.uint8)
    np.save(tmp_path / "data.npy", images.repeat(6, 1).repeat(6, 2))
    arguments = json.dumps({**ARGS, "attention": [6], "dropout": 0.0})
    losses = {}
    for size in (1, 2):
        out = tmp_path / str(size)
        on_ranks(
            size, "train", "--model", "autoencoder-kl", "--model-args", arguments, "--data",
            tmp_path / "data.npy", "--batch-size", 8, "--epochs", 8, "--lr", 0.01, "--device",
            "cpu", "--log-every", 1, "--tensorboard", "off", "--out", out,
        )  # fmt: skip
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[size] = [row["loss"] for row in rows]
    # The first step's weights are the same, and its noise, which is all that differs, is small.
    assert losses[2][0] == pytest.approx(losses[1][0], rel=0.02)
    assert losses[2][-1] == pytest.approx(losses[1][-1], rel=0.1)
    assert losses[2][-1] < 0.8 * losses[2][0]
