"""The loader equals torch's to the bit: batches, order and draws, for all data sets and
transforms."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data import (
    DataLoader as TorchLoader,
)

from tests.fresh import python
from vae_fast import DataLoader


def both(dataset, epochs=2, change=lambda epoch: None, restore=lambda: None, **options):
    """The loader's batches, after they were compared with torch's, and the loader."""
    seen = []
    for cls in (TorchLoader, DataLoader):
        restore()
        torch.manual_seed(3)
        made = {k: v() if callable(v) and k != "collate_fn" else v for k, v in options.items()}
        loader, batches = cls(dataset, **made), []
        for epoch in range(epochs):
            change(epoch)
            batches += [(batch, torch.rand(2)) for batch in loader]  # as a model's noise is drawn
        seen.append((batches, torch.get_rng_state()))
    (expected, state), (found, own) = seen
    assert len(found) == len(expected) and torch.equal(state, own)
    for a, b in zip(found, expected, strict=True):
        same(a, b)
    return loader


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.dim() else a == b
    else:
        assert a == b


def generator():
    return torch.Generator().manual_seed(11)


TENSORS = TensorDataset(
    torch.randn(53, 3, 2), torch.arange(53), torch.rand(53, dtype=torch.float64) > 0.5
)
ORDERS = {
    "plain": {},
    "shuffle": {"shuffle": True},
    "shuffle, drop_last": {"shuffle": True, "drop_last": True},
    "generator": {"shuffle": True, "generator": generator},
    "random part": {"sampler": lambda: SubsetRandomSampler(range(5, 40))},
    "weights": {"sampler": lambda: WeightedRandomSampler(torch.arange(53.0), 30)},
    "replacement": {
        "sampler": lambda: RandomSampler(TENSORS, replacement=True, generator=generator())
    },
    "batch_sampler": {"batch_sampler": lambda: [[3, 1], [0], [52, -1, 4], [2, np.int64(7)]]},
}


@pytest.mark.parametrize(
    ("order", "workers"),
    [*((order, 0) for order in ORDERS), ("shuffle", 2), ("replacement", 1), ("batch_sampler", 1)],
)
def test_orders_and_draws(order, workers):
    options = dict(ORDERS[order])
    if "batch_sampler" not in options:
        options["batch_size"] = 8
    loader = both(TENSORS, num_workers=workers, **options)
    assert loader.served == "from memory: rows of 3 tensors"
    assert isinstance(loader, TorchLoader) and len(loader) == len(list(loader))


def test_workers_that_stay_draw_no_new_seed():
    loader = both(TENSORS, 3, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)
    assert loader.served.startswith("from memory")


@pytest.mark.parametrize(
    "dataset",
    [
        torch.randn(20, 4),
        np.random.default_rng(0).standard_normal((20, 3)),
        np.arange(40, dtype=np.int16).reshape(20, 2),
        Subset(TENSORS, [5, 2, 2, 50]),
        Subset(Subset(TENSORS, np.arange(30)), torch.arange(20)),
        Subset(TENSORS, [np.int64(3), np.int64(1)]),
        TensorDataset(torch.randn(9, 2).bfloat16(), torch.full((9,), float("nan"))),
    ],
    ids=lambda d: type(d).__name__,
)
def test_data_sets_in_memory(dataset):
    assert both(dataset, batch_size=3, shuffle=True).served.startswith("from memory")


class Twice(TensorDataset):
    def __getitem__(self, index):
        return [2 * value for value in super().__getitem__(index)]


class Items(TensorDataset):
    def __getitems__(self, index):
        return [tuple(t[i] + 1 for t in self.tensors) for i in index]


class Noisy(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(2) + index


@pytest.mark.parametrize(
    ("dataset", "options", "why"),
    [
        (Twice(torch.arange(9.0)), {}, "a Twice is not known to lie in memory"),
        (Items(torch.arange(9.0)), {}, "a Items is not known to lie in memory"),
        (Subset(Twice(torch.arange(9.0)), [1, 2]), {}, "a Twice is not known"),
        (Noisy(), {"shuffle": True}, "a Noisy is not known to lie in memory"),
        (ConcatDataset([TENSORS, TENSORS]), {}, "a ConcatDataset is not known"),
        ([(1, 2.0), (3, 4.0)], {}, "a list is not known"),
        (np.arange(4.0), {}, "an array of float64 of 1 dimensions"),
        (TENSORS, {"collate_fn": lambda batch: batch}, "it has a collate_fn"),
        (TENSORS, {"batch_size": None}, "without a batch size"),
        (
            TensorDataset(torch.arange(9.0) + 1j),
            {},
            "its tensors are not all plain numbers in memory",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_everything_else_is_torchs(dataset, options, why):
    loader = both(dataset, **{"batch_size": 4, **options})
    assert loader.served.startswith("by torch.utils.data.DataLoader: ") and why in loader.served


def test_a_stream_is_torchs():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(5))

    assert "an IterableDataset" in both(Stream(), batch_size=2).served


def test_worker_init_fn_is_called():
    calls = []
    list(DataLoader(TENSORS, batch_size=8, worker_init_fn=calls.append))
    loader = DataLoader(TENSORS, batch_size=30, num_workers=1, worker_init_fn=print)
    assert calls == [] and "worker_init_fn" in loader.served


@pytest.mark.parametrize("index", [[99], [1.0], []])
def test_its_errors_are_torchs(index):
    errors = []
    for cls in (TorchLoader, DataLoader):
        with pytest.raises((IndexError, TypeError, RuntimeError)) as caught:
            list(cls(TENSORS, batch_sampler=[index]))
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_it_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "vae_fast"):
        loader = DataLoader(TENSORS, batch_size=8)
        for _ in range(2):
            list(loader)
    assert [r.getMessage() for r in caplog.records] == [
        "Batches are made from memory: rows of 3 tensors"
    ]


def test_copies_and_pickles():
    loader = DataLoader(TENSORS, batch_size=8, shuffle=True, generator=generator())
    next(iter(loader))
    for other in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):
        loader.generator.manual_seed(1)
        other.generator.manual_seed(1)
        same(list(other), list(loader))
        assert other.served == loader.served


def test_batches_are_the_callers_own():
    (x, _, _), *_ = DataLoader(TENSORS, batch_size=53)
    before = TENSORS.tensors[0].clone()
    x.zero_()
    assert torch.equal(TENSORS.tensors[0], before)


def test_changes_take_effect():
    """Written into, replaced, between two epochs and within one."""
    dataset = TensorDataset(torch.zeros(8, 2))

    def restore():
        dataset.tensors = (torch.arange(16.0).view(8, 2),)

    def change(epoch):
        if epoch == 1:
            dataset.tensors[0][3] = 9.0
        if epoch == 2:
            dataset.tensors = (torch.ones(8, 1), torch.arange(8))

    both(dataset, 3, change, restore, batch_size=3)
    restore()
    batches = iter(DataLoader(dataset, batch_size=4))
    next(batches)
    dataset.tensors = (torch.full((8, 1), 5.0),)
    same(next(batches), [torch.full((4, 1), 5.0)])
    dataset.tensors = (torch.full((8, 1), 5.0, requires_grad=True),)
    loader = DataLoader(dataset, batch_size=4)
    assert "not all plain numbers" in loader.served


MEMORY = """
import platform, resource, torch
from torch.utils.data import TensorDataset
from tests.fresh import python
from vae_fast import DataLoader

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(400, 784) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
next(iter(DataLoader(TensorDataset(torch.rand(8, 2)))))
faults()
print(platform.libc_ver()[0], before, faults())
"""


def test_memory_of_a_step_is_kept_for_the_next():
    libc, before, after = python(MEMORY).stdout.split()
    if libc != "glibc" or int(before) < 1000:
        pytest.skip("this malloc keeps freed memory as it is")
    assert int(after) < 100, (before, after)
