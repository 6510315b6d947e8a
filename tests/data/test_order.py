"""Cuts: batches and ranks' shares, without overlap, loss or an empty rank."""

import pytest
import torch

from vae_fast.data.order import Cuts, epoch_order


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [2, 3, 5])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_have_every_sample_once(world_size, batch_size, drop_last):
    for count in range(world_size * batch_size, 90):
        ranks = [Cuts(count, batch_size, r, world_size, drop_last) for r in range(world_size)]
        assert len({len(cuts) for cuts in ranks}) == 1
        places = []
        for batch in range(len(ranks[0])):
            shares = [cuts.bounds(batch) for cuts in ranks]
            sizes = [stop - start for start, stop in shares]
            assert 1 <= min(sizes) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
            assert ranks[0].global_bounds(batch) == (shares[0][0], shares[-1][1])
            places += [p for start, stop in shares for p in range(start, stop)]
        whole = count // (world_size * batch_size) * world_size * batch_size
        assert places == list(range(whole if drop_last else count))


def test_the_number_of_ranks_does_not_change_the_batches():
    one, four = Cuts(103, 16), [Cuts(103, 4, r, 4) for r in range(4)]
    assert len(one) == len(four[0]) == 7
    for batch in range(7):
        assert one.bounds(batch) == four[0].global_bounds(batch)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((10, 4, 2, 2), "rank must be from 0 to world_size - 1, and rank is 2 and world_size 2"),
        ((10, 11, 0, 1, True), "10 samples are fewer than one batch of 11, and drop_last"),
        ((3, 4, 0, 4), "3 samples can't be cut into batches of 4 on 4 ranks"),
        ((9, 1, 0, 4), "9 samples can't be cut into batches of 1 on 4 ranks"),
    ],
)
def test_batches_that_cannot_be_shared_are_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        Cuts(*arguments)


def test_orders_of_different_epochs_and_seeds_are_unrelated():
    orders = [epoch_order(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, first in enumerate(orders):
        assert torch.equal(first.sort().values, torch.arange(1000))
        for second in orders[:i]:
            assert (first == second).sum() < 10  # 1 on average
