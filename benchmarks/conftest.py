"""pytest benchmarks --benchmark-group-by=param:row: the same rows under pytest-benchmark.

Each contender of each row of the standard suite is one test, checked before it is timed. (For
ratios, `python -m benchmarks` times the contenders of a row in turns, which this does not.)
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks import machine, requirements, suites
from benchmarks.case import Absence, Absent, WrongResult
from benchmarks.inputs import last_level_cache, sets_to_rotate
from benchmarks.measure import check
from benchmarks.peers import COMPILE_MODES, CUDA_GRAPHS
from benchmarks.registry import make
from benchmarks.timing import Runner


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" not in metafunc.fixturenames:
        return
    ops = metafunc.module.SETUPS
    rows = (*suites.standard(), *suites.training(), *suites.large())
    specs = [s for s in rows if s.op in ops]
    metafunc.parametrize("row", specs, ids=[requirements.key_of(s) for s in specs], scope="module")
    metafunc.parametrize("contender", metafunc.module.NAMES)


@cache
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def prepared(row):
    """The row's case, its contenders by name and its sets of inputs."""
    try:
        machine.need_kernels(device())
    except ValueError as error:
        pytest.exit(f"benchmarks: {error}", returncode=2)
    torch._dynamo.reset()
    try:
        case = make(row, device(), [*COMPILE_MODES, *CUDA_GRAPHS])
    except Absent as absent:
        pytest.skip(str(absent))
    first = list(case.inputs(0))
    sets, _ = sets_to_rotate(sum(t.nbytes for t in first), last_level_cache(device()))
    inputs = [first, *(list(case.inputs(seed)) for seed in range(1, case.sets or sets))]
    return case, {c.name: c for c in case.contenders()}, inputs


@pytest.fixture
def checked(prepared, contender) -> Runner:
    """A runner over the row's inputs, of a contender whose result is right."""
    case, contenders, inputs = prepared
    found = contenders.get(contender)
    if found is None or isinstance(found, Absence):
        pytest.skip(found.why if found else f"{contender} has no part in this row")
    own = [found.own(s) for s in inputs]
    try:
        check(case, found, inputs[0], own[0])
    except WrongResult as error:
        pytest.fail(f"refused before timing: {error}")
    return Runner(found, own, case.device)
