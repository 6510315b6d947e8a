"""The training rows: every loop trains, and a broken loop is refused."""

import gc
import time
from pathlib import Path

import pytest
import torch

from benchmarks import bench_training
from benchmarks.bench_training import DROP_IN, setup_epoch, setup_sizes, setup_step
from benchmarks.busy import Busy, beside
from benchmarks.case import OURS, Absence, Contender, WrongResult
from benchmarks.measure import check
from vae_fast.data import DataUnavailableError, load

CPU = torch.device("cpu")


def by_name(case):
    return {c.name: c for c in case.contenders() if isinstance(c, Contender)}


def test_a_step_of_ours_and_of_the_tutorial_train_alike():
    case = setup_step((128,), "both", "float32", CPU, [])
    inputs, found = case.inputs(0), by_name(case)
    for name in (OURS, DROP_IN, "eager"):
        check(case, found[name], inputs, found[name].own(inputs))


def test_a_step_that_does_not_train_is_refused(monkeypatch):
    monkeypatch.setattr(bench_training, "LEARNING_RATE", 1e-9)
    case = setup_step((128,), "both", "float32", CPU, [])
    idle = by_name(case)["eager"]
    monkeypatch.undo()
    inputs = case.inputs(0)
    with pytest.raises(WrongResult, match="30 steps later"):
        check(case, idle, inputs, idle.own(inputs))


def test_epochs_of_every_loop_have_the_same_loss():
    case = setup_epoch((128, 1280), "both", "float32", CPU, [])
    assert case.samples == 1280
    found = by_name(case)
    found.pop("compile")  # minutes, on a machine whose compiler is busy
    assert {OURS, DROP_IN, "tutorial", "in memory"} <= set(found)
    for contender in found.values():
        check(case, contender, [], contender.own([]))


def test_epochs_of_other_sizes_have_the_loss_of_the_tutorials_loop():
    case = setup_sizes((100, 60, 1200), "both", "float32", CPU, [])
    for contender in by_name(case).values():
        check(case, contender, [], contender.own([]))
    small = by_name(setup_sizes((100, 1, 1200), "both", "float32", CPU, []))[OURS]
    with pytest.raises(WrongResult, match="first epoch's loss"):
        check(case, small, [], small.own([]))


def test_too_few_images_are_repeated(monkeypatch):
    few = load("fashion10k")

    def load_some(name, split):
        if name != "fashion10k":
            raise DataUnavailableError(name, [], [])
        return few

    monkeypatch.setattr(bench_training, "load", load_some)
    many = bench_training.images.__wrapped__(10_003)
    assert many.shape == (10_003, 28, 28) and torch.equal(many[10_000:], many[:3])


def test_pythae_is_named_absent_where_it_is_not_installed(monkeypatch):
    from benchmarks import pythae_vae

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    absent = pythae_vae.contender(bench_training.tutorial(), torch.zeros(4, 784), 2)
    assert isinstance(absent, Absence)
    assert absent.why.startswith("pythae is not installed: pip")


def test_busy_processes_run_only_while_something_is_timed():
    busy = Busy(1)
    busy.go()
    (pid,) = busy._pids

    def state():
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def settled(wanted):
        end = time.monotonic() + 10
        while state() not in wanted and time.monotonic() < end:
            time.sleep(0.01)
        return state() in wanted

    made = beside(busy, Contender("it", lambda _: settled("RS")))
    for _ in range(2):
        assert made.run(made.prepare(None)) and settled("T")
    del made, busy
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()
