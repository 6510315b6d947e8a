import warnings

import pytest
import torch

import vae_fast
from tests.train import small
from tests.train.replay import Tape
from tests.train.small import batches, counting
from vae_fast.models import build
from vae_fast.train import ObjectiveConfig, OptimizerConfig, TrainConfig
from vae_fast.train.captured import WARM_UP, CapturedStep
from vae_fast.train.distributed import World
from vae_fast.train.runners import Eager
from vae_fast.train.schedules import ScheduleValues
from vae_fast.train.step import Step

CPU = torch.device("cpu")
STEPS = 12


@pytest.fixture(autouse=True)
def reference():
    with vae_fast.set_backend("reference"):  # the native CPU ops read the upstream gradient
        yield


def make(captured, on_device=True, model="vae", **options):
    """A step as on a GPU, with its decisions and schedules in tensors, captured or not."""
    torch.manual_seed(0)
    config = TrainConfig(
        model=model,
        lr=0.01,
        ema=0.9,
        runner="eager",
        objective=ObjectiveConfig(schedule="linear", period=9, unit="steps", free_bits=0.01),
        optimizer=OptimizerConfig(
            name="adamw", warmup_steps=4, decay="cosine", clip_norm=20.0, skip_above=5.0
        ),
        epochs=2,
        **options,
    )
    step = Step(build(model, (1, 6, 6), latent_dim=3), config, CPU, World(), 6)
    step.runner = Eager(step)  # the CPU's own
    if on_device:
        step.schedule_values.on_device(CPU)
        step.updates[0].guard.decides_on_device = True
    if captured:
        step.runner = CapturedStep(step.take, Tape(), step.model)
    return step


def train(step, sizes=(8,) * STEPS):
    return small.train(step, sizes)


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


@pytest.mark.parametrize("model", ["vae", "iwae"])
def test_a_captured_step_gives_the_numbers_of_an_eager_one(model):
    options = {}
    eager, captured = make(False, model=model, **options), make(True, model=model, **options)
    if model == "iwae":
        for step in (eager, captured):
            step.config.objective.free_bits = 0.0
    found = train(captured)
    assert captured.runner._graph.replays == STEPS - WARM_UP
    for mine, other in zip(leaves(found), leaves(train(eager)), strict=True):
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, other)
        else:
            assert mine == pytest.approx(other, nan_ok=True)


def test_a_model_that_counts_in_python_is_not_captured():
    eager, captured = counting(make(False)), counting(make(True))
    with pytest.warns(UserWarning, match="taken eagerly.*each step changes count, in Python"):
        found = train(captured)
    for mine, other in zip(leaves(found[1]), leaves(train(eager)[1]), strict=True):
        assert torch.equal(mine, other)
    assert captured.model.count == STEPS and captured.runner.name == "eager"
    assert captured.refused == {"graph": "each step changes count, in Python"}


def test_numbers_in_tensors_are_the_numbers():
    found, plain = train(make(True)), train(make(False, on_device=False))
    for name, value in plain[1].items():
        assert torch.allclose(found[1][name], value, rtol=1e-4, atol=1e-6)
    assert found[2][0] == pytest.approx(plain[2][0], rel=1e-5)
    assert found[3]["grad_norm"] == pytest.approx(plain[3]["grad_norm"], rel=1e-5)


def test_other_shapes_are_taken_eagerly_with_one_warning():
    sizes = [8, 8, 8, 8, 5, 8, 8, 5, 8]
    eager, captured = make(False), make(True)
    with pytest.warns(UserWarning, match=r"\(5, 1, 6, 6\) is taken eagerly.*\(8, 1, 6, 6\)"):
        found = train(captured, sizes)
    assert captured.runner._graph.replays == 7 - WARM_UP
    for mine, other in zip(leaves(found[1]), leaves(train(eager, sizes)[1]), strict=True):
        assert torch.equal(mine, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured(batches([5])[0], 9)


def test_a_change_of_python_state_is_detected():
    """The check of the check: a step that keeps a value in Python differs when replayed."""
    eager, captured = make(False), make(True)
    for step in (eager, captured):
        take, count = step.take, iter(range(100))

        def counting(share, take=take, count=count, step=step):
            step.schedule_values.beta.add_(0.01 * next(count))
            return take(share)

        step.take = counting
    captured.runner = CapturedStep(captured.take, Tape())
    found, other = train(captured)[1], train(eager)[1]
    assert any(not torch.equal(found[name], other[name]) for name in found)


def test_a_step_that_waits_for_the_device_is_not_captured():
    eager, captured = make(False), make(True)
    captured.runner._graph.waited = True  # as CudaGraph finds in the warm-up
    with pytest.warns(UserWarning, match="not captured in a CUDA graph: each step waits"):
        found = train(captured)
    assert captured.runner.name == "eager"
    assert "waits for the device" in captured.refused["graph"]
    for mine, other in zip(leaves(found[1]), leaves(train(eager)[1]), strict=True):
        assert torch.equal(mine, other)


def test_a_value_read_on_the_host_is_refused():
    captured = make(True)
    captured.updates[0].guard.decides_on_device = False
    with pytest.raises(AssertionError, match="has read a value on the host"):
        train(captured)


def test_a_skipped_step_leaves_everything_as_it_was():
    step = make(True)
    train(step)
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    moments = [t.clone() for t in step.updates[0].optimizer._buffers.values()]
    with torch.no_grad():
        step.model.decoder[0].bias[0] = torch.inf
    step(batches([8])[0], STEPS)
    after = step.model.state_dict()
    assert after["decoder.0.bias"][0] == torch.inf
    del before["decoder.0.bias"], after["decoder.0.bias"]
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(map(torch.equal, moments, step.updates[0].optimizer._buffers.values()))
    assert step.updates[0].guard.read()["skipped"] == 1
    assert step.meter.read()[1] == 8


def test_schedules_are_written_where_they_change():
    values = ScheduleValues(CPU)
    values.set(1.0, 0.5, 0.1)
    assert (values.beta, values.lr, values.average_weight) == (1.0, 0.5, 0.1)
    values.on_device(CPU)
    beta = values.beta
    values.set(2.0, 0.5, 0.1)
    values.set(3.0, 0.5, 0.1)
    assert beta is values.beta
    assert [t.item() for t in (values.beta, values.lr, values.average_weight)] == pytest.approx(
        [3.0, 0.5, 0.1]
    )
