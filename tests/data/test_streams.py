"""IterableDatasets: every sample once, over ranks and workers, resumed by skipping, or an error."""

import json
import warnings

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vae_fast.data import ArrayData, Batches, StreamData, as_data, load, pack

N = 23
IMAGES = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 1, 3, 2)


class Stream(IterableDataset):
    """The samples in order; ``reads`` counts what was read."""

    def __init__(self, items=None):
        self.items = [(IMAGES[i], 10 * i) for i in range(N)] if items is None else items
        self.reads = 0

    def __iter__(self):
        for item in self.items:
            self.reads += 1
            yield item


class Sized(Stream):
    def __len__(self):
        return len(self.items)


class Splitting(Stream):
    """Gives each rank and each worker samples of its own, as WebDataset and Streaming do."""

    def __init__(self, rank=0, ranks=1):
        super().__init__()
        self.rank, self.ranks = rank, ranks

    def __iter__(self):
        mine = self.items[self.rank :: self.ranks]
        worker = get_worker_info()
        return iter(mine if worker is None else mine[worker.id :: worker.num_workers])


class Shuffled(Sized):
    """Another order every epoch, as HF datasets have it."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch))
        return iter([self.items[i] for i in order])


def numbers(batches) -> list[list[int]]:
    found = []
    for images, labels in batches:
        assert images.dtype == torch.uint8 and images.shape[1:] == (1, 3, 2)
        assert labels.tolist() == [10 * int(i) for i in images[:, 0, 0, 0]]
        found.append(images[:, 0, 0, 0].tolist())
    return found


def test_known_length_and_unknown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(Batches(Sized(), 10, shuffle=True)) == [
            [*range(10)],
            [*range(10, 20)],
            [20, 21, 22],
        ]
        assert numbers(Batches(as_data(Stream(), samples=N), 10, shuffle=True))[2] == [20, 21, 22]
    unknown = as_data(Stream())
    with pytest.warns(UserWarning, match="Stream does not say.*samples="):
        assert len(Batches(unknown, 10, shuffle=True)) == 3
    reads = unknown.dataset.reads
    assert len(Batches(unknown, 5, shuffle=True)) == 5 and unknown.dataset.reads == reads


def test_an_epoch_may_be_a_part_of_the_stream_and_not_more():
    data = as_data(Stream(), samples=12)
    looked_at = data.dataset.reads
    some = Batches(data, 5, shuffle=True)
    assert numbers(some) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert some.data.dataset.reads == looked_at + 12
    with pytest.raises(ValueError, match="Stream ended after 23 samples, and an epoch.* 24"):
        numbers(Batches(as_data(Stream(), samples=24), 12, shuffle=True))


@pytest.mark.parametrize("make", [Sized, Shuffled])
def test_resuming_by_skipping(make):
    batches = Batches(make(), 5, shuffle=True)
    whole = [numbers(batches) for _ in range(2)]
    assert (whole[0] != whole[1]) == (make is Shuffled)
    for epoch in range(2):
        for stop in range(1, 5):
            running = Batches(make(), 5, shuffle=True)
            running.set_epoch(epoch)
            for given, _ in enumerate(running, 1):
                if given == stop:
                    state = json.loads(json.dumps(running.state_dict()))
                    break
            resumed = Batches(make(), 5, shuffle=True)
            resumed.load_state_dict(state)
            assert numbers(resumed) == whole[epoch][stop:]


def test_ranks_share_one_stream():
    found = [
        numbers(Batches(Sized(), 4, shuffle=True, rank=rank, world_size=3)) for rank in range(3)
    ]
    assert [len(f) for f in found] == [2, 2, 2]
    assert sorted(i for rank in found for batch in rank for i in batch) == list(range(N))
    assert sorted(rank[0][0] for rank in found) == [0, 4, 8]


def test_ranks_of_a_stream_that_splits_itself():
    def batches(rank, samples):
        data = as_data(Splitting(rank, 2), splits=True, samples=samples)
        return Batches(data, 4, shuffle=True, rank=rank, world_size=2)

    found = [numbers(batches(rank, 22)) for rank in range(2)]
    assert found[0] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20]]
    assert found[1] == [[1, 3, 5, 7], [9, 11, 13, 15], [17, 19, 21]]
    again = batches(1, 22)
    again.load_state_dict({**again.state_dict(), "batch": 1})
    assert numbers(again) == found[1][1:]
    with pytest.raises(
        ValueError, match="rank 1's part of Splitting ended after 11 .*24 on 2 rank"
    ):
        numbers(batches(1, 24))


def test_workers_of_a_stream_that_splits_itself():
    data = as_data(Splitting(), splits=True, samples=N)
    batches = Batches(data, 5, shuffle=True, num_workers=2)
    found = numbers(batches)
    assert [len(batch) for batch in found] == [5, 5, 5, 5, 3]
    assert sorted(i for batch in found for i in batch) == list(range(N))
    batches.set_epoch(0)
    batches.load_state_dict({**batches.state_dict(), "batch": 2})
    assert numbers(batches) == found[2:]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: Batches(Sized(), 4, shuffle=True, num_workers=2),
            ValueError,
            "one stream, which 2 workers would each read whole.*num_workers=0.*splits=True",
        ),
        (lambda: as_data(Stream(), splits=True), ValueError, "splits itself.*samples="),
        (lambda: as_data(iter([IMAGES[0]])), TypeError, "iterator, which can be read once only"),
        (lambda: as_data(Stream([])), ValueError, "Stream: there is nothing in it"),
        (lambda: as_data(Stream(), samples=0), ValueError, "at least 1 sample, got 0"),
        (lambda: as_data(IMAGES, samples=3), TypeError, "samples and splits.*this is a Tensor"),
        (lambda: load(Sized(), split="val"), ValueError, "stream.*train_data="),
        (lambda: pack(Sized(), "nowhere"), TypeError, "stream.*keep_in_memory=True"),
        (
            lambda: numbers(
                Batches(Sized([(IMAGES[0], 0), (IMAGES[0, 0, :2], 1)]), 2, shuffle=True)
            ),
            ValueError,
            r"item 1 is torch.uint8 of shape \(1, 2, 2\)",
        ),
        (lambda: as_data(Stream([{"img": IMAGES[0]}])), TypeError, "keys img, and image must"),
    ],
)
def test_impossible_arguments_are_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_mappings_and_streams_that_are_no_torch_class():
    class Plain:
        def __iter__(self):
            return iter([{"image": image.numpy()[0], "label": 3} for image in IMAGES])

    data = as_data(Plain(), samples=N)
    assert isinstance(data, StreamData) and data.shape == (1, 3, 2)
    images, labels = next(iter(Batches(data, N, shuffle=True)))
    assert torch.equal(images, IMAGES) and labels.tolist() == [3] * N


def test_kept_in_memory():
    data = as_data(Stream(), keep_in_memory=True)
    assert isinstance(data, ArrayData) and torch.equal(data.images, IMAGES)
    assert data.labels.tolist() == [10 * i for i in range(N)]
    assert len(as_data(Stream(), keep_in_memory=True, samples=7)) == 7
