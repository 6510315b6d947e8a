import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vae_fast.train.distributed import World


def world_of(monkeypatch, size, rank):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", str(rank))
    return World()


@pytest.mark.parametrize("count", [24, 23, 22, 13])
def test_shares_cover_the_data_once_and_weights_make_the_mean_of_a_batch(monkeypatch, count):
    data = torch.arange(float(count))[:, None] / count
    worlds = [world_of(monkeypatch, 3, rank) for rank in range(3)]
    passes = [list(world.shares(world.batches(data, 12, shuffle=True, seed=1))) for world in worlds]
    alone = list(world_of(monkeypatch, 1, 0).batches(data, 12, shuffle=True, seed=1))
    assert len(passes[0]) == len(passes[1]) == len(passes[2]) == 2
    seen = torch.cat([share.images for shares in passes for share in shares])
    assert torch.equal(seen.sort(0)[0], data)
    for shares, batch in zip(zip(*passes, strict=True), alone, strict=True):
        # DistributedDataParallel averages over ranks what every rank gives.
        mean = sum(share.images.mean() * share.weight for share in shares) / 3
        if count != 13:  # where the last batch would leave ranks empty, the cut is another
            assert mean.item() == pytest.approx(batch.images.mean().item())


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="50 can't be shared by 3 of them, and 48 can"):
        world_of(monkeypatch, 3, 0).batches(torch.rand(99, 2), 50, shuffle=False)


def test_weights_are_those_of_the_place_resumed_at(monkeypatch):
    world = world_of(monkeypatch, 2, 0)
    data = torch.rand(11, 2)  # batches of 4, 4 and 3: the last is shared as 1 and 2
    whole = [share.weight for share in world.shares(world.batches(data, 4, shuffle=False))]
    assert whole == [1.0, 1.0, pytest.approx(1 * 2 / 3)]
    batches = world.batches(data, 4, shuffle=False)
    batches.load_state_dict(batches.state_dict() | {"batch": 2})
    assert [share.weight for share in world.shares(batches)] == whole[2:]


PROGRAM = """
import os, sys, torch
from vae_fast.train.distributed import World
from vae_fast.train import TrainConfig
from vae_fast.train.step import Step
from vae_fast.models import build

torch.set_num_threads(1)
world, cpu = World(), torch.device("cpu")
world.join(cpu)
torch.manual_seed(0)
model = build("ae", (1, 8, 8), latent_dim=3)
config = TrainConfig(model="ae", lr=0.01)
step = Step(model, config, cpu, world, 10)
gradients = []
guard = step.updates[0].guard.__call__
class Watching:
    def __call__(self, optimizer, parameters, loss):
        gradients.append([p.grad.clone() for p in parameters])
        return guard(optimizer, parameters, loss)
    def __getattr__(self, name):
        return getattr(step_guard, name)
step_guard, step.updates[0].guard = step.updates[0].guard, Watching()
images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
batches = world.batches(images, 8, shuffle=False)
for number in range(3):
    for share in world.shares(batches):
        assert (share.weight == 1.0) == (world.size == 1)
        step(share, number)
means, samples = step.meter.read()
if world.is_main:
    torch.save([gradients, means, samples], sys.argv[1])
world.leave()
"""


def torchrun(tmp_path, size, *arguments, **options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = os.environ | {
            "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        processes.append(
            subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **options)
        )
    return processes


@pytest.mark.slow
def test_the_gradient_of_two_ranks_is_that_of_the_joined_batch(tmp_path):
    """Seven samples over two gloo processes: uneven shares, and still one mean."""
    results = []
    for size in (1, 2):
        out = tmp_path / f"{size}.pt"
        processes = torchrun(tmp_path, size, "-c", PROGRAM, out)
        assert [p.wait() for p in processes] == [0] * size
        results.append(torch.load(out, weights_only=True))
    (one, one_means, one_samples), (two, two_means, two_samples) = results
    assert one_samples == two_samples == 21
    for name in one_means:
        assert two_means[name] == pytest.approx(one_means[name], rel=1e-5)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-5)


def command(data, out, *more):
    return (
        "-m", "vae_fast", "train", "--data", data, "--batch-size", 50, "--device", "cpu",
        "--epochs", 3, "--log-every", 4, "--model-args.latent_dim", 3, "--out", out, *more,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (330, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "data.npy", images)
    return tmp_path / "data.npy"


@pytest.mark.slow
def test_two_ranks_train_one_run_and_resume_it(tmp_path, data):
    def losses(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for name in ("a", "b"):
        processes = torchrun(tmp_path, 2, *command(data, tmp_path / name))
        assert [p.wait() for p in processes] == [0, 0]
    assert losses("a") == losses("b")  # noise differs between ranks and not between runs
    processes = torchrun(tmp_path, 1, *command(data, tmp_path / "alone"))
    assert [p.wait() for p in processes] == [0]
    assert losses("alone")[-1] == pytest.approx(losses("a")[-1], rel=0.01)

    processes = torchrun(tmp_path, 2, *command(data, tmp_path / "cut", "--epochs", 1))
    assert [p.wait() for p in processes] == [0, 0]
    processes = torchrun(tmp_path, 2, "-m", "vae_fast", "resume", tmp_path / "cut", "--epochs", 3)
    assert [p.wait() for p in processes] == [0, 0]
    assert losses("cut") == losses("a")


@pytest.mark.slow
def test_a_signal_stops_all_ranks_at_one_step(tmp_path, data):
    arguments = command(data, tmp_path / "run", "--epochs", 3000)
    processes = torchrun(tmp_path, 2, *arguments, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert [p.wait() for p in processes] == [128 + signal.SIGTERM] * 2
    assert "stopped by SIGTERM at step" in processes[0].stdout.read()
