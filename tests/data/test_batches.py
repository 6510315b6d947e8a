"""Batches: every sample once, in an order of the seed and the epoch alone, resumable anywhere."""

import json
import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from vae_fast.data import Batches, as_data
from vae_fast.data.order import epoch_order

N = 23
IMAGES = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 1, 3, 2).contiguous()
LABELS = torch.arange(N) * 10


def sources(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    return {
        "resident": as_data((IMAGES, LABELS)),
        "mapped": as_data(tmp_path / "x.npy"),
        "dataset": as_data(TensorDataset(IMAGES, LABELS)),
    }


@pytest.fixture(params=["resident", "mapped", "dataset"])
def data(request, tmp_path):
    return sources(tmp_path)[request.param]


def order(batches) -> list[list[int]]:
    """The samples' numbers batch by batch, as the images hold them."""
    found = []
    for images, labels in batches:
        assert images.dtype == torch.uint8 and images.shape[1:] == (1, 3, 2)
        numbers = images[:, 0, 0, 0].tolist()
        assert (images == images[:, :1, :1, :1]).all()
        assert labels is None or labels.tolist() == [10 * n for n in numbers]
        found.append(numbers)
    return found


def test_every_sample_once_with_an_uneven_last_batch(data):
    batches = Batches(data, 5, shuffle=True, seed=1)
    found = order(batches)
    assert [len(b) for b in found] == [5, 5, 5, 5, 3] and len(batches) == 5
    assert sorted(chain(*found)) == list(range(N))
    assert list(chain(*found)) != list(range(N))
    dropped = Batches(data, 5, shuffle=True, seed=1, drop_last=True)
    assert order(dropped) == found[:4] and len(dropped) == 4


def test_without_shuffle_the_order_is_the_datas_own(data):
    batches = Batches(data, 8, shuffle=False)
    for _ in range(2):
        assert list(chain(*order(batches))) == list(range(N))


def test_the_order_depends_on_seed_and_epoch_alone(data, tmp_path):
    first = Batches(data, 5, shuffle=True, seed=1)
    epochs = [order(first) for _ in range(3)]  # after a whole pass comes the next epoch
    assert epochs[0] != epochs[1] != epochs[2] and first.epoch == 3
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    for other in sources(tmp_path).values():
        again = Batches(other, 5, shuffle=True, seed=1)
        again.set_epoch(2)
        assert order(again) == epochs[2]
        again.set_epoch(0)
        assert order(again) == epochs[0]
    assert order(Batches(data, 5, shuffle=True, seed=2)) != epochs[0]


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(10, 0, 0).tolist() == [7, 0, 9, 2, 1, 3, 8, 4, 6, 5]
    assert epoch_order(10, 7, 3).tolist() == [1, 8, 2, 7, 4, 6, 5, 0, 9, 3]


def test_no_global_random_state_is_touched(data):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    order(Batches(data, 5, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_anywhere_equals_never_stopping(data, shuffle):
    def make():
        return Batches(data, 5, shuffle=shuffle, seed=4)

    whole = [order(b) for b in [make()] for _ in range(3)]
    assert [len(epoch) for epoch in whole] == [5, 5, 5]
    for epoch in range(2):
        for stop in range(1, 6):
            running = make()
            running.set_epoch(epoch)
            for given, _ in enumerate(running, 1):
                if given == stop:
                    state = json.loads(json.dumps(running.state_dict()))  # plain numbers
                    break
            resumed = make()
            resumed.load_state_dict(state)
            resumed.set_epoch(epoch)  # as a training loop does, and it must not start over
            assert order(resumed) == whole[epoch][stop:]
            assert resumed.epoch == epoch + 1
            assert order(resumed) == whole[epoch + 1]


def test_state_between_epochs_is_the_next_epochs_start(data):
    batches = Batches(data, 5, shuffle=True)
    order(batches)
    state = batches.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)
    resumed = Batches(data, 5, shuffle=True)
    resumed.load_state_dict(state)
    assert order(resumed) == order(batches)


def test_a_pass_left_early_begins_anew(data):
    batches = Batches(data, 5, shuffle=True)
    first = next(iter(batches)).images
    assert torch.equal(next(iter(batches)).images, first)
    assert len(order(batches)) == 5


def test_after_a_pass_left_early_the_state_is_the_next_passs(data):
    """Another process continues as this process would, not where the pass was left."""
    batches = Batches(data, 5, shuffle=True)
    for given, _ in enumerate(batches, 1):
        assert batches.state_dict()["batch"] == given
        if given == 3:
            break
    state = batches.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 0)
    resumed = Batches(data, 5, shuffle=True)
    resumed.load_state_dict(state)
    assert order(resumed) == order(batches)
    # The same after a place was loaded, and left again: that epoch begins anew.
    batches.load_state_dict({**state, "batch": 2})
    assert batches.state_dict()["batch"] == 2
    next(iter(batches))
    assert batches.state_dict()["batch"] == 0


def test_a_pass_that_is_dropped_late_changes_no_other(data):
    batches = Batches(data, 5, shuffle=True)
    old = iter(batches)
    next(old)
    new = iter(batches)
    next(new), next(new)
    del old
    assert batches.state_dict()["batch"] == 2
    batches.load_state_dict({**batches.state_dict(), "batch": 4})
    del new
    assert batches.state_dict()["batch"] == 4


def test_another_runs_state_is_refused(data):
    state = Batches(data, 5, shuffle=True, seed=3).state_dict()
    with pytest.raises(ValueError, match="global_batch was 5 there, and is 6 here"):
        Batches(data, 6, shuffle=True, seed=3).load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 3 there, and is 0 here"):
        Batches(data, 5, shuffle=True).load_state_dict(state)
    with pytest.raises(ValueError, match="samples was 23 there, and is 20 here"):
        Batches(data.slice(0, 20), 5, shuffle=True, seed=3).load_state_dict(state)
    mine = Batches(data, 5, shuffle=True, seed=3)
    with pytest.raises(ValueError, match="batch 6 of epoch 0 does not exist.*5 batches"):
        mine.load_state_dict({**state, "batch": 6})
    with pytest.raises(ValueError, match="lacks batch"):
        mine.load_state_dict({k: v for k, v in state.items() if k != "batch"})


def test_workers_give_the_same_batches():
    data = as_data(TensorDataset(IMAGES, LABELS))
    plain = Batches(data, 5, shuffle=True, seed=1)
    workers = Batches(data, 5, shuffle=True, seed=1, num_workers=2)
    for _ in range(2):
        assert order(workers) == order(plain)
    for batches in (plain, workers):
        next(iter(batches))  # a pass left early, with batches read ahead
    assert order(workers) == order(plain)
    state = {**plain.state_dict(), "batch": 3}
    workers.load_state_dict(state)
    plain.load_state_dict(state)
    assert len(resumed := order(workers)) == 2 and resumed == order(plain)


def test_floats_come_as_float32_and_bools_as_bool():
    doubles = torch.rand(6, 2, 2, dtype=torch.float64)
    batch = next(iter(Batches(doubles, 6, shuffle=False)))
    assert torch.equal(batch.images[:, 0], doubles.float())
    bits = doubles > 0.5
    assert torch.equal(next(iter(Batches(bits, 6, shuffle=False))).images[:, 0], bits)


def test_batches_are_contiguous_copies(data):
    images = next(iter(Batches(data, 5, shuffle=False))).images
    assert images.is_contiguous()
    images.zero_()
    assert order(Batches(data, 5, shuffle=False))[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, and is 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int, and is 2.5"),
        ({"batch_size": 4, "seed": -1}, ValueError, "seed must be at least 0, and is -1"),
        (
            {"batch_size": 24, "drop_last": True},
            ValueError,
            "23 samples are fewer than one batch of 24",
        ),
    ],
)
def test_bad_arguments(data, arguments, error, words):
    with pytest.raises(error, match=words):
        Batches(data, shuffle=True, **arguments)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        Batches(data, 4, shuffle=True).set_epoch(-1)


@pytest.mark.cuda
def test_batches_on_a_gpu_are_the_same(data):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    batches = Batches(data, 5, shuffle=True, seed=1, device="cuda")
    assert all(images.is_cuda for images, _ in batches)
    batches.set_epoch(0)
    assert order(batches) == order(Batches(data, 5, shuffle=True, seed=1))
