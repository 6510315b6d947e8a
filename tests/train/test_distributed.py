import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from vae_fast.joined import batch_joined_by
from vae_fast.models import build
from vae_fast.models.divergence import floored_kl
from vae_fast.train import rng
from vae_fast.train.distributed import RankFailed, World
from vae_fast.train.sharded import shard
from vae_fast.train.stop import StopSignals


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
    whole = [share[2:] for share in world.shares(world.batches(data, 4, shuffle=False))]
    assert whole == [(1.0, 1.0), (1.0, 1.0), (pytest.approx(1 * 2 / 3), 3 / 4)]
    batches = world.batches(data, 4, shuffle=False)
    batches.load_state_dict(batches.state_dict() | {"batch": 2})
    assert [share[2:] for share in world.shares(batches)] == whole[2:]
    four = world_of(monkeypatch, 4, 0)  # 9 samples in batches of 5 and 4, so that none is empty
    shares = four.shares(four.batches(torch.rand(9, 2), 8, shuffle=False))
    assert [share.part for share in shares] == [5 / 8, 4 / 8]
    alone = world_of(monkeypatch, 1, 0)
    for size, parts in ((4, [1.0, 1.0, 0.75]), (11, [1.0]), (100, [1.0])):
        shares = list(alone.shares(alone.batches(data, size, shuffle=False)))
        assert [share[2:] for share in shares] == [(1.0, part) for part in parts]


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
config = TrainConfig(model="ae", lr=0.01, runner="eager")
step = Step(model, config, cpu, world, 10)
gradients = []
class Watching:
    def take(self, optimizer, parameters, *arguments, **options):
        gradients.append([p.grad.clone() for p in model.parameters()])
        return step_guard.take(optimizer, parameters, *arguments, **options)
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
os._exit(0)  # the teardown may abort: docs/design-traps.md
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
    assert len(one) == 3
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


def test_ranks_draw_their_own_noise_and_runs_the_same():
    """On the CPU torch uses only a seed's lower 32 bits."""

    def drawn(*key):
        torch.manual_seed(3)
        rng.seed_rank(*key)
        return torch.rand(1).item(), np.random.rand(), random.random()

    keys = [(3, 0), (3, 1), (3, 2), (4, 1), (3, 0, 70), (3, 1, 70)]
    for generator in zip(*(drawn(*key) for key in keys), strict=True):
        assert len(set(generator)) == len(keys)
    assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]
    torch.manual_seed(3)
    first = torch.rand(1).item()
    assert drawn(3, 0)[0] == first  # rank 0 goes on as it would by itself
    with rng.forked(3, 0):
        first = torch.rand(1)
    with rng.forked(3, 1):
        assert torch.rand(1) != first


def test_free_bits_floor_the_joined_batch():
    """Two ranks' parts of seven samples, by turns in one process."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(7, 5, generator=generator) * torch.tensor([0.1, 0.4, 0.8, 1.5, 0.5])
    mu[:3, 1], mu[3:, 1] = 0.0, 0.5  # held, which the second part would not be by itself
    mu[:3, 4], mu[3:, 4] = 0.1, 0.6  # not held, which the first part would be
    parts, weights = (mu[:3], mu[3:]), (3 / 7, 4 / 7)

    def kl_of(leaf):
        return floored_kl(leaf.square().mean(0) / 2, len(leaf), 0.1, reduction="batchmean")

    alone = mu.clone().requires_grad_()
    kl_of(alone).backward()
    leaves = [part.clone().requires_grad_() for part in parts]
    joined = mu.square().mean(0) / 2
    for leaf, weight in zip(leaves, weights, strict=True):
        with batch_joined_by(lambda mean: joined):
            kl = kl_of(leaf)
        assert kl.item() == pytest.approx(kl_of(alone).item())
        (kl * weight).backward()
    assert torch.allclose(torch.cat([leaf.grad for leaf in leaves]), alone.grad)
    held = alone.grad.abs().sum(0) == 0
    # The dimensions that are held differ from those that either part alone would hold.
    own = [(part.square().mean(0) / 2 < 0.1).tolist() for part in parts]
    assert 0 < held.sum() < 5 and held.tolist() not in own


class Board:
    """A store that ranks share."""

    def __init__(self):
        self.text = ""

    def compare_set(self, key, expected, desired):
        self.text = desired if self.text == expected else self.text
        return self.text.encode()


def test_every_rank_reports_the_first_reason(monkeypatch):
    worlds, board = [world_of(monkeypatch, 3, rank) for rank in range(3)], Board()
    for world in worlds:
        world._board = board
    gone = pytest.raises(RankFailed, match="another rank of this run is gone")
    with gone, worlds[0].fail_together():
        raise RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(ValueError, match="^no such image$"), worlds[1].fail_together():
        raise ValueError("no such image")
    for world in (worlds[0], worlds[2]):
        told = pytest.raises(RankFailed, match="^rank 1 failed: no such image$")
        with told, world.fail_together():
            raise RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(KeyError), worlds[2].fail_together(but=(KeyError,)):
        raise KeyError("all raise this alike")


def test_ranks_meet_over_a_signal_about_once_a_second(monkeypatch):
    now, meetings = [0.0], []

    class Many:
        is_distributed = True

        def maximum(self, *values):
            meetings.append(now[0])
            return [signal.SIGTERM if now[0] > 5 else values[0], values[1]]

    monkeypatch.setattr("vae_fast.train.stop.time.perf_counter", lambda: now[0])
    signals = StopSignals()
    for step in range(1, 1000):
        now[0] += 0.01
        if signals.agreed_signal(Many(), step):
            break
    assert 5.0 < now[0] < 6.5 and signals.asked == signal.SIGTERM
    assert 4 <= len(meetings) <= 9
    assert signals.agreed_signal(Many(), step + 1, now=True) == signal.SIGTERM


def test_a_parameter_without_rows_is_refused_by_fsdp_in_a_sentence():
    options = {"latent_dim": 2, "likelihood": "gaussian"}
    model = build("vae", (1, 4, 4), **options, likelihood_options={"variance": "shared"})
    with pytest.raises(ValueError, match=r"likelihood\.logvar .* 0-d: .*distributed='ddp'"):
        shard(model, torch.device("cpu"), 2, "fp32")
