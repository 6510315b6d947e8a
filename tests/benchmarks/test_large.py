"""The rows of the large models: all contenders train the same network, a broken one is refused, and
rows that need a GPU say so.
"""

import pytest
import torch

from benchmarks import bench_large
from benchmarks.bench_large import Training, build, setup
from benchmarks.case import OURS, Absent, WrongResult
from benchmarks.measure import check
from benchmarks.memory import peak_bytes

CPU = torch.device("cpu")
TINY = {
    "channels": 4,
    "multipliers": [1, 2],
    "groups": 2,
    "z_channels": 2,
    "checkpointing": "blocks",
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(bench_large, "model_args", lambda name: TINY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contenders_take_the_same_step(dtype):
    case = setup("autoencoder_kl", (4,), "both", dtype, CPU, [])
    inputs, contenders = case.inputs(0), case.contenders()
    assert [c.name for c in contenders] == [OURS, "eager"]
    for contender in contenders:
        check(case, contender, inputs, contender.own(inputs))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda training: training.optimizer.param_groups[0].update(lr=1e-6),
            "first step's length",
        ),
        (lambda training: training.start[0].mul_(1.5), "the loss"),
    ],
)
def test_a_step_that_is_not_the_model_s_is_refused(spoil, words):
    case = setup("autoencoder_kl", (4,), "both", "float32", CPU, [])
    inputs = case.inputs(0)
    training = Training(
        build("autoencoder_kl", (1, 28, 28), CPU), torch.float32, CPU, "auto", False
    )
    spoil(training)
    outputs = training.outputs(training.step(inputs[0]))
    with pytest.raises(WrongResult, match=words):
        case.check(inputs, outputs)


def test_checkpointing_lowers_the_peak():
    case = setup("autoencoder_kl", (16,), "both", "float32", CPU, [])
    inputs, (ours, eager) = case.inputs(0), case.contenders()
    for contender in (ours, eager):  # the optimizer's state is made in the first step
        contender.run(inputs[0])
    assert peak_bytes(ours, inputs[0], CPU) < 0.7 * peak_bytes(eager, inputs[0], CPU)


def test_rows_for_a_gpu_say_so():
    with pytest.raises(Absent, match="for a GPU"):
        setup("autoencoder_kl_84m", (8,), "both", "bfloat16", CPU, [])
