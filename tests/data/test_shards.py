"""The reader of shards: every sample once, resumable, shared by ranks, in limited memory, with
checksums."""

import gc
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, as_data, load, open_shards, pack
from vae_fast.data.shard_index import INDEX

N = 103
IMAGES = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 1, 4, 4).contiguous()
LABELS = 1000 + torch.arange(N)


def numbers_in(images: torch.Tensor) -> list[int]:
    """The samples' numbers, which their pixels hold."""
    assert images.dtype == torch.uint8 and (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def order(batches) -> list[list[int]]:
    found = []
    for images, labels in batches:
        found.append(numbers_in(images))
        assert labels.tolist() == [1000 + n for n in found[-1]]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    pack((IMAGES, LABELS), path, shard_bytes=160, workers=0)  # 11 shards, of 10 samples and 3
    return path


@pytest.fixture(params=[1, 480, 1 << 20], ids=["shard", "three shards", "all"])
def data(request, folder):
    """Windows of one shard, of three, and of all."""
    return open_shards(folder, window_bytes=request.param)


def test_in_order_without_shuffle(data, folder):
    batches = Batches(data, 8, shuffle=False)
    everything = data.gather(torch.arange(N))[0]
    for _ in range(2):
        assert sum(order(batches), []) == numbers_in(everything)  # noqa: RUF017
    assert as_data(folder).shards == as_data(folder / INDEX).shards == data.shards


def test_shuffled_every_sample_once_and_differently_each_epoch(data):
    batches = Batches(data, 8, shuffle=True, seed=3)
    epochs = [order(batches) for _ in range(3)]
    for epoch in epochs:
        assert [len(b) for b in epoch] == [8] * 12 + [7]
        assert sorted(n for b in epoch for n in b) == list(range(N))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = Batches(data, 8, shuffle=True, seed=3)
    again.set_epoch(1)
    assert order(again) == epochs[1]
    assert order(Batches(data, 8, shuffle=True, seed=4)) != epochs[0]
    assert order(Batches(replace(data, threads=1), 8, shuffle=True, seed=3)) == epochs[0]
    dropped = Batches(data, 8, shuffle=True, seed=3, drop_last=True)
    assert order(dropped) == epochs[0][:12]


def test_windows_mix_shards_and_are_mixed_inside(folder):
    data = open_shards(folder, window_bytes=480)
    place = {n: i // 10 for i, n in enumerate(numbers_in(data.gather(torch.arange(N))[0]))}
    found = [n for b in order(Batches(data, 1, shuffle=True)) for n in b]
    first = found[:30]
    assert len({place[n] for n in first}) == 3  # three shards' samples, and no others
    assert len({place[n] for n in found[:10]}) > 1  # mixed among each other
    stored = [n for n in place if place[n] == place[first[0]]]
    assert [n for n in first if n in stored] != stored  # and within each


def test_resuming_at_every_position_equals_never_stopping(data):
    whole = [order(b) for b in [Batches(data, 8, shuffle=True, seed=5)] for _ in range(2)]
    for stop in range(1, 14):
        running = Batches(data, 8, shuffle=True, seed=5)
        for given, _ in enumerate(running, 1):
            if given == stop:
                state = json.loads(json.dumps(running.state_dict()))
                break
        resumed = Batches(data, 8, shuffle=True, seed=5)
        resumed.load_state_dict(state)
        assert order(resumed) == whole[0][stop:]
        assert order(resumed) == whole[1]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", ["shards", "array"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_have_every_sample_once_and_the_batches_of_one_process(
    data, world_size, kind, shuffle
):
    source = data if kind == "shards" else as_data((IMAGES, LABELS))
    one = order(Batches(source, 6 * world_size, shuffle=shuffle, seed=2))
    ranks = [
        order(Batches(source, 6, shuffle=shuffle, seed=2, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert len({len(found) for found in ranks}) == 1
    assert sorted(n for found in ranks for b in found for n in b) == list(range(N))
    for batch, expected in enumerate(one):
        assert [n for found in ranks for n in found[batch]] == expected


def test_resuming_on_another_number_of_ranks(data):
    one = Batches(data, 12, shuffle=True, seed=2)
    whole = order(one)
    one.set_epoch(0)
    running = iter(one)
    for _ in range(4):
        next(running)
    state = one.state_dict()
    rest = []
    for rank in range(3):
        mine = Batches(data, 4, shuffle=True, seed=2, rank=rank, world_size=3)
        mine.load_state_dict(state)
        rest.append(order(mine))
    for batch, expected in enumerate(whole[4:]):
        assert [n for found in rest for n in found[batch]] == expected


def test_slices_and_splits(data, folder):
    everything = numbers_in(data.gather(torch.arange(N))[0])
    part = data.slice(7, 38)  # from within one shard to within another
    assert len(part) == 31
    assert [n for b in order(Batches(part, 8, shuffle=False)) for n in b] == everything[7:38]
    found = [n for b in order(Batches(part, 8, shuffle=True)) for n in b]
    assert sorted(found) == sorted(everything[7:38])
    assert numbers_in(part.gather(torch.tensor([30, 0]))[0]) == [everything[37], everything[7]]
    train, val = (load(folder, split=s) for s in ("train", "val"))
    assert (len(train), len(val)) == (93, 10)
    assert numbers_in(val.gather(torch.arange(10))[0]) == everything[93:]


def test_any_samples_in_any_order_are_gathered(data):
    everything = numbers_in(data.gather(torch.arange(N))[0])
    for rows in (torch.arange(N).flip(0), torch.tensor([5] * 10), torch.tensor([102, 0, 55, 0])):
        images, labels = data.gather(rows)
        assert numbers_in(images) == [everything[r] for r in rows]
        assert labels.tolist() == [1000 + everything[r] for r in rows]


def test_a_kept_batch_is_not_written_over(data):
    kept = [(images, images.clone()) for images, _ in Batches(data, 8, shuffle=True)]
    for images, as_it_was in kept:
        assert torch.equal(images, as_it_was)


def test_memory_is_that_of_three_windows_at_most(tmp_path):
    rng = np.random.RandomState(0)
    pack(rng.randint(0, 256, (16_000, 32, 32), dtype=np.uint8), tmp_path, shard_bytes=1 << 19)
    data = open_shards(tmp_path, window_bytes=1 << 21)  # 4 of 32 shards
    batches = Batches(data, 50, shuffle=True)
    tracemalloc.start()
    try:
        found = sum(len(images) for images, _ in batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 16_000
    # The window in use, the one ahead, and one that a batch still holds: 6 of 16 MB.
    assert (1 << 21) < peak < 3.2 * (1 << 21)


def test_threads_end_with_the_pass(data):
    import threading

    def ours():
        return [t for t in threading.enumerate() if t.name.startswith("vae_fast-shards")]

    running = iter(Batches(data, 8, shuffle=True))
    next(running)
    assert ours()
    running.close()
    gc.collect()
    assert not ours()


# What is wrong with a folder


@pytest.fixture
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["images-00004.npy", "labels-00004.npy"])
def test_a_corrupted_shard_is_named(copy, name):
    path = copy / name
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    data = open_shards(copy, window_bytes=480)
    with pytest.raises(ValueError, match=rf"{name} is damaged: its SHA-256 is \w+, and the index"):
        order(Batches(data, 8, shuffle=True))
    # Two ranks read this shard. The one that has to verify it raises.
    failed = []
    for rank in range(2):
        data = open_shards(copy, window_bytes=480)
        try:
            list(Batches(data, 4, shuffle=True, rank=rank, world_size=2))
        except ValueError as error:
            failed.append((rank, str(error)))
    assert [rank for rank, _ in failed] == [0] and name in failed[0][1]
    unverified = open_shards(copy, verify=False)
    assert sum(len(images) for images, _ in Batches(unverified, 8, shuffle=True)) == N


def test_a_shard_cut_short_or_missing_or_swapped_is_named_when_opened(copy):
    path = copy / "images-00002.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"images-00002\.npy is damaged"):
        open_shards(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images-00002\.npy is missing: put it back"):
        open_shards(copy)
    path.write_bytes((copy / "images-00010.npy").read_bytes())
    with pytest.raises(
        ValueError, match=r"images-00002\.npy is uint8 of shape \(3, .*index says uint8 of \(10,"
    ):
        open_shards(copy)
    np.save(path, np.array([{}] * 10), allow_pickle=True)
    with pytest.raises(ValueError, match=r"images-00002\.npy is damaged"):
        open_shards(copy)


def test_a_shard_lost_while_in_use_is_named(copy):
    data = open_shards(copy, window_bytes=1)
    running = iter(Batches(data, 8, shuffle=False))
    next(running)
    (copy / "images-00008.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"images-00008\.npy is missing"):
        list(running)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "not an index of shards"),
        ({"version": 2}, "has version 2, and this vae_fast reads 1: run pack"),
        ({"samples": 104}, "says 104 samples, and its shards have 103: run pack again"),
        ({"dtype": "object"}, "dtype 'object' is none of uint8.*run pack again"),
        ({"shape": [1, 4, 5]}, r"images-00000\.npy is uint8 of shape .* says uint8 of"),
        ({"shards": None}, "lacks shards"),
        ({"shards": []}, "shards must be a list of objects"),
        ({"shards": [3]}, "shards must be a list of objects"),
        ({"shards": [{"samples": 2}]}, "lacks images"),
        ({"samples": "2"}, "samples must be a number above 0, and is '2'"),
        ({"samples": 10**30}, "samples must be a number"),
        ({"shape": [1, -4]}, "shape must be a list of numbers"),
        ({"dtype": ["uint8"]}, "dtype must be text"),
        ({"labelled": 1}, "labelled must be true or false"),
    ],
)
def test_a_wrong_index_is_an_error(copy, change, words):
    index = json.loads((copy / INDEX).read_text())
    index = {k: v for k, v in {**index, **change}.items() if v is not None}
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=words):
        open_shards(copy)


def test_an_index_cannot_lead_out_of_its_folder(copy):
    index = json.loads((copy / INDEX).read_text())
    index["shards"][0]["images"] = "../secret.npy"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"'\.\./secret\.npy' is not a plain file name"):
        open_shards(copy)
    (copy / INDEX).write_text("{")
    with pytest.raises(ValueError, match="can.t be read: Expecting property"):
        open_shards(copy)
    (copy / INDEX).write_text("[" * 100_000)
    with pytest.raises(ValueError, match="can.t be read: maximum recursion depth"):
        open_shards(copy)
    (copy / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json does not exist"):
        open_shards(copy)


@pytest.mark.cuda
def test_on_a_gpu_batches_come_from_pinned_memory(data):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    cuda = Batches(data, 8, shuffle=True, seed=3, device="cuda")
    assert order(cuda) == order(Batches(data, 8, shuffle=True, seed=3))
    stream = data.stream(cuda.cuts, shuffle=True, seed=3, epoch=0, pin=True)
    assert next(stream)[0].is_pinned()
