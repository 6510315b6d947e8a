"""Training from shards: right losses, and memory that does not grow with the data."""

import pytest
import torch

from benchmarks import bench_shards, requirements
from benchmarks.bench_shards import IN_MEMORY, Stream, resident_memory, setup_shards, sprites
from benchmarks.case import OURS, WrongResult
from benchmarks.measure import check
from vae_fast.data import open_shards, pack

CPU = torch.device("cpu")


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(bench_shards, "STEPS", 6)


def test_both_train_alike_and_a_broken_step_is_refused(few_steps, monkeypatch):
    case = setup_shards((16, 256), "both", "float32", CPU, [])
    found = {c.name: c for c in case.contenders()}
    for name in (OURS, IN_MEMORY):
        check(case, found[name], [], found[name].own([]))
    monkeypatch.setattr(bench_shards, "LEARNING_RATE", 1e-9)
    with pytest.raises(WrongResult, match="mean loss"):
        check(case, found[OURS], [], found[OURS].own([]))


def test_sprites_of_any_number_have_all_shapes():
    for count in (3, 128, 1000):
        shapes = sprites(count).gather(torch.arange(count))[1]
        assert shapes.unique().tolist() == [0, 1, 2]


def test_steps_go_on_from_epoch_to_epoch():
    stream = Stream(sprites(64), 32, "float32", CPU)
    losses = [stream.steps(3) for _ in range(2)]
    assert stream.trainer.progress.step == 6 and stream.trainer.batches.epoch == 2
    assert losses[1] < losses[0]


def test_a_gigabyte_is_the_limit():
    (limit,) = [r for r in requirements.ENGINE if r.measure == "GB under 1"]
    key = requirements.key_of(limit.specs[0])

    def judged(peak):
        row = {"key": key, "results": {OURS: {"median": 1.0, "peak_bytes": peak}}}
        (verdict,) = requirements.judge((limit,), {"rows": [row]})
        return verdict.measured

    assert judged(900_000_000) >= limit.least > judged(1_100_000_000)
    assert judged(None) is None


@pytest.mark.slow
def test_memory_is_that_of_three_windows_however_large_the_data(tmp_path):
    """512 MiB of images through windows of 8 MiB, twice over: a few windows' memory beyond one batch's."""
    count, batch, window = 1 << 17, 128, 8 << 20
    pack(sprites(count), tmp_path / "shards", shard_bytes=1 << 20)
    assert len(open_shards(tmp_path / "shards")) == count
    few = resident_memory(None, batch, "float32", "cpu", 20)
    steps = count // batch
    much = resident_memory(tmp_path / "shards", batch, "float32", "cpu", steps, window_bytes=window)
    all_in_one = resident_memory(
        tmp_path / "shards", batch, "float32", "cpu", 20, window_bytes=count * 4096
    )
    assert much - few < 6 * window
    assert all_in_one - few > 256 << 20  # so that it can fail
