"""Timing: contenders take turns, round by round; results are medians.

Turns compensate for drift in the machine's speed: a slow round is slow for all.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.case import Contender


@dataclass
class Budget:
    """How long to measure: ``rounds`` readings of at least ``reading`` seconds per contender;
    fewer, but at least ``least``, if a row would take more than ``row`` seconds."""

    rounds: int = 25
    reading: float = 0.02
    row: float = 10.0
    least: int = 5
    warm_up: float = 0.2

    @classmethod
    def quick(cls) -> Budget:
        return cls(rounds=9, reading=0.005, row=3.0, least=3, warm_up=0.05)


@dataclass
class Timing:
    """Seconds per call: the median of ``rounds`` readings of ``calls`` calls, and the quartiles."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int


def summarize(readings: Sequence[float], calls: int) -> Timing:
    """Median and quartiles (inclusive, linear between readings)."""
    if not readings:
        raise ValueError("no readings to summarize")
    if len(readings) == 1:
        low = middle = high = readings[0]
    else:
        low, middle, high = statistics.quantiles(readings, n=4, method="inclusive")
    return Timing(middle, low, high, len(readings), calls)


class Runner:
    """Calls a contender, each time with the next set of inputs, and times so many calls."""

    def __init__(self, contender: Contender, sets: list[Any], device: torch.device) -> None:
        self.contender = contender
        self.sets = itertools.cycle(sets)
        self.cuda = device.type == "cuda"
        self.calls = 1

    def states(self, calls: int) -> list[Any]:
        prepare = self.contender.prepare
        sets = itertools.islice(self.sets, calls)
        return list(sets) if prepare is None else [prepare(s) for s in sets]

    def read(self, calls: int) -> float:
        """Seconds per call over ``calls`` calls."""
        states, run = self.states(calls), self.contender.run
        if self.cuda:
            # Events are on the device: launches that run ahead of it don't hide its time, and
            # neither does the wait for it count.
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            began.record()
            for state in states:
                run(state)
            ended.record()
            ended.synchronize()
            return began.elapsed_time(ended) / 1e3 / calls
        began = time.perf_counter()
        for state in states:
            run(state)
        return (time.perf_counter() - began) / calls

    def warm_up(self, budget: Budget) -> float:
        """Run off the record for a while, and choose how many calls make a reading."""
        began, fastest, calls = time.perf_counter(), float("inf"), 1
        while True:
            fastest = min(fastest, self.read(calls))
            if time.perf_counter() - began > budget.warm_up:
                break
            calls = self.limit(max(1, round(0.25 * budget.warm_up / fastest)))
        self.calls = self.limit(max(1, round(budget.reading / fastest)))
        return fastest

    def limit(self, calls: int) -> int:
        return calls if self.contender.prepare is None else min(calls, self.contender.most_prepared)


def measure(
    contenders: Sequence[Contender],
    sets: dict[str, list[Any]],
    device: torch.device,
    budget: Budget,
) -> dict[str, Timing]:
    """Time the contenders in turns. ``sets``: each contender's inputs by its name, in its own form;
    all contenders have the same ones, and a reading goes through them in a circle."""
    runners = {c.name: Runner(c, sets[c.name], device) for c in contenders}
    expected = sum(r.warm_up(budget) * r.calls for r in runners.values())
    rounds = max(budget.least, min(budget.rounds, int(budget.row / max(expected, 1e-9))))
    readings: dict[str, list[float]] = {name: [] for name in runners}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        order = list(runners)
        for _ in range(rounds):
            for name in order:
                runner = runners[name]
                if runner.calls > 1:
                    runner.read(1)  # not counted: threads of the previous contender may still spin
                readings[name].append(runner.read(runner.calls))
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(readings[name], runners[name].calls) for name in runners}
