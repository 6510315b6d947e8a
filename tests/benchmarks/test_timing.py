"""Timing: medians and quartiles, turns, rotation, and what is not timed."""

import gc

import pytest
import torch

from benchmarks.case import Contender
from benchmarks.inputs import MOST_SETS, sets_to_rotate
from benchmarks.timing import Budget, Runner, measure, summarize

CPU = torch.device("cpu")
SHORT = Budget(rounds=4, reading=1e-4, row=1.0, least=3, warm_up=1e-4)


def test_median_and_quartiles_are_those_of_the_readings():
    timing = summarize([5.0, 1.0, 2.0, 4.0, 3.0], calls=7)
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert (timing.rounds, timing.calls) == (5, 7)


def test_one_slow_reading_does_not_move_the_median():
    assert summarize([1.0, 1.0, 1.0, 1.0, 900.0], calls=1).median == 1.0


def test_one_reading_is_its_own_spread():
    timing = summarize([2.5], calls=1)
    assert (timing.low, timing.median, timing.high) == (2.5, 2.5, 2.5)


def test_no_readings_are_an_error():
    with pytest.raises(ValueError, match="no readings"):
        summarize([], calls=1)


def test_contenders_take_turns_and_their_order_rotates():
    calls = []

    def spent(name):
        def run(_):
            calls.append(name)
            torch.zeros(1 << 18)  # long enough that one call makes a reading

        return Contender(name, run)

    budget = Budget(rounds=4, reading=0.0, row=1.0, least=4, warm_up=0.0)
    timings = measure([spent("a"), spent("b")], {"a": [None], "b": [None]}, CPU, budget)
    assert "".join(calls[2:]) == "abbaabba"
    assert timings["a"].rounds == timings["b"].rounds == 4


def test_the_slower_contender_has_the_longer_time():
    a, b = torch.ones(1 << 12), torch.ones(1 << 19)
    contenders = [Contender("few", lambda _: a.exp()), Contender("many", lambda _: b.exp())]
    timings = measure(contenders, {"few": [None], "many": [None]}, CPU, SHORT)
    assert timings["many"].median > 5 * timings["few"].median


def test_each_call_has_the_next_set_of_inputs():
    seen = []
    runner = Runner(Contender("c", seen.append), [0, 1, 2], CPU)
    runner.read(4)
    runner.read(3)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_preparation_is_not_timed():
    work = torch.ones(1 << 21)

    def slow(_):
        return work.exp().log().exp().sum()

    prepared = Runner(Contender("p", lambda _: None, prepare=slow), [None], CPU)
    timed = Runner(Contender("t", slow), [None], CPU)
    assert prepared.read(3) < 0.2 * timed.read(3)


def test_garbage_is_collected_between_measurements_and_not_within():
    during = []
    contender = Contender("c", lambda _: during.append(gc.isenabled()))
    budget = Budget(rounds=2, reading=0.0, row=1.0, least=2, warm_up=0.0)
    measure([contender], {"c": [None]}, CPU, budget)
    assert during[-1] is False
    assert gc.isenabled()


def test_a_slow_row_gets_fewer_rounds_but_at_least_the_minimum():
    work = torch.ones(1 << 20)
    contender = Contender("c", lambda _: work.exp())
    budget = Budget(rounds=1000, reading=0.0, row=1e-6, least=3, warm_up=0.0)
    assert measure([contender], {"c": [None]}, CPU, budget)["c"].rounds == 3


@pytest.mark.parametrize(
    ("set_bytes", "sets", "cached"),
    [
        (200 << 20, 1, False),  # larger than four caches by itself
        (8 << 20, 16, False),  # 16 of them are four caches
        (2 << 20, 64, False),
        (1 << 10, MOST_SETS, True),  # 64 kB in all: the row has to say so
    ],
)
def test_sets_rotate_past_the_cache_or_the_row_says_so(set_bytes, sets, cached):
    assert sets_to_rotate(set_bytes, cache=32 << 20) == (sets, cached)
