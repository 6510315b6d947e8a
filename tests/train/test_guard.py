import math

import pytest
import torch

from vae_fast.train import OptimizerConfig
from vae_fast.train.guard import SETTLING, Guard, gradient_norm

CPU = torch.device("cpu")


def make(optimizer="fused", **config):
    parameter = torch.nn.Parameter(torch.ones(4))
    made = {
        "fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        "plain": lambda p: torch.optim.SGD(p, lr=1.0),
    }[optimizer.removesuffix(" on device")]([parameter])
    guard = Guard(OptimizerConfig(**config), CPU)
    guard.decides_on_device = "on device" in optimizer  # as on a GPU, without one
    return guard, made, parameter


def step(guard, optimizer, parameter, gradient, loss=1.0):
    parameter.grad = torch.as_tensor(gradient, dtype=torch.float32).expand(4).clone()
    return bool(guard(optimizer, [parameter], torch.tensor(loss)))


def test_norm_is_over_all_gradients():
    assert gradient_norm([torch.tensor([3.0]), torch.tensor([[4.0], [12.0]])]) == 13.0


@pytest.mark.parametrize("optimizer", ["fused", "fused on device", "plain", "plain on device"])
@pytest.mark.parametrize(
    ("gradient", "loss"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_a_step_that_is_not_finite_does_not_reach_the_optimizer(optimizer, gradient, loss):
    guard, made, parameter = make(optimizer)
    assert step(guard, made, parameter, gradient, loss) is True
    assert torch.equal(parameter, torch.ones(4))
    # Moments and the count of steps are untouched too.
    assert not any(value.any() for value in made.state[parameter].values())
    assert step(guard, made, parameter, 1.0) is False
    assert not torch.equal(parameter, torch.ones(4))
    assert guard.read() == {"grad_norm": 2.0, "skipped": 1}
    assert guard.consecutive_not_finite == 0


def test_steps_not_finite_are_counted_in_a_row_across_reads():
    guard, made, parameter = make()
    for gradient in (1.0, math.nan, math.nan):
        step(guard, made, parameter, gradient)
    guard.read()
    assert guard.consecutive_not_finite == 2
    step(guard, made, parameter, math.nan)
    assert guard.read() == {"grad_norm": None, "skipped": 3}
    assert guard.consecutive_not_finite == 3


@pytest.mark.parametrize("gradient", [0.1, 5.0])
def test_clipping_is_torchs_clipping(gradient):
    guard, made, parameter = make("plain", clip_norm=2.0)
    step(guard, made, parameter, gradient)
    plain = torch.nn.Parameter(torch.ones(4))
    plain.grad = torch.full((4,), gradient)
    torch.nn.utils.clip_grad_norm_([plain], 2.0)
    torch.optim.SGD([plain], lr=1.0).step()
    assert torch.allclose(parameter, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["fused", "fused on device"])
def test_clipping_with_a_fused_optimizer(optimizer):
    guard, made, parameter = make(optimizer, clip_norm=1.0)
    step(guard, made, parameter, 50.0)
    assert torch.allclose(made.state[parameter]["exp_avg"], torch.full((4,), 0.1 * 0.5))


def test_a_norm_far_above_the_usual_is_skipped_once_the_usual_is_known():
    guard, made, parameter = make(skip_above=5.0, patience=3)
    assert step(guard, made, parameter, 100.0) is False  # nothing is usual yet
    guard, made, parameter = make(skip_above=5.0, patience=3)
    for _ in range(SETTLING):
        assert step(guard, made, parameter, 1.0) is False
    before = parameter.detach().clone()
    assert step(guard, made, parameter, 4.9) is False
    before = parameter.detach().clone()
    assert step(guard, made, parameter, 100.0) is True
    assert torch.equal(parameter, before)
    assert step(guard, made, parameter, 1.0) is False


def test_skipping_ends_after_patience():
    guard, made, parameter = make(skip_above=5.0, patience=3)
    for _ in range(SETTLING):
        step(guard, made, parameter, 1.0)
    found = [step(guard, made, parameter, 100.0) for _ in range(100)]
    assert found[:4] == [True, True, True, False]
    assert not any(found[-20:])  # the usual norm has become the new one
    # A NaN is never let through, however long it lasts.
    assert all(step(guard, made, parameter, math.nan) for _ in range(10))
    assert torch.isfinite(parameter).all()


def test_the_mean_norm_is_that_of_the_steps_taken():
    guard, made, parameter = make(skip_above=5.0)
    norms = [1.0, 2.0, 3.0]
    for norm in norms:
        step(guard, made, parameter, norm / 2)
    step(guard, made, parameter, math.nan)
    assert guard._usual.tolist() == [pytest.approx(2.0), 3.0, 1.0]


def test_state_loads_into_another_guard():
    guard, made, parameter = make(skip_above=5.0)
    for gradient in (1.0, math.nan, 2.0):
        step(guard, made, parameter, gradient)
    other, _, _ = make(skip_above=5.0)
    other.load_state_dict(guard.state_dict())
    assert other._usual.tolist() == guard._usual.tolist()
    assert other.read() == guard.read() == {"grad_norm": 3.0, "skipped": 1}


def test_a_streak_that_has_ended_is_seen():
    guard, optimizer, parameter = make()
    for gradient in [1.0, *[math.nan] * 7, 1.0, math.nan, 1.0]:
        step(guard, optimizer, parameter, gradient)
    guard.read()
    assert guard.longest_not_finite == 7 and guard.consecutive_not_finite == 0
    for gradient in [math.nan, math.nan]:
        step(guard, optimizer, parameter, gradient)
    guard.read()
    step(guard, optimizer, parameter, math.nan)
    guard.read()
    assert guard.longest_not_finite == 3  # it began before the last read
