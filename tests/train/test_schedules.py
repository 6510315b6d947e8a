import math

import pytest

from vae_fast.train import ObjectiveConfig, OptimizerConfig
from vae_fast.train.schedules import beta_at, lr_at


def test_constant_beta():
    assert beta_at(ObjectiveConfig(), 4.0, 0, 10) == 4.0


def test_linear_beta_rises_over_its_period_and_stays():
    by_step = ObjectiveConfig(schedule="linear", period=4, unit="steps")
    assert [beta_at(by_step, 2.0, s, 10) for s in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    by_epoch = ObjectiveConfig(schedule="linear", period=2, unit="epochs")
    assert beta_at(by_epoch, 1.0, 10, 10) == 0.5
    assert beta_at(by_epoch, 1.0, 20, 10) == 1.0


def test_cyclical_beta_starts_again_every_period():
    cyclical = ObjectiveConfig(schedule="cyclical", period=8, unit="steps", ramp=0.5)
    found = [beta_at(cyclical, 1.0, s, 10) for s in range(16)]
    assert found == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0] * 2


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    config = OptimizerConfig(warmup_steps=4, decay="cosine", final_lr=0.1)
    assert [lr_at(config, 1.0, s, 104) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(config, 1.0, 4, 104) == 1.0
    assert lr_at(config, 1.0, 54, 104) == pytest.approx(0.55)
    assert lr_at(config, 1.0, 104, 104) == pytest.approx(0.1)
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_at(config, 1.0, 29, 104) == pytest.approx(quarter)


def test_constant_learning_rate_after_warm_up():
    config = OptimizerConfig(warmup_steps=2)
    assert [lr_at(config, 0.5, s, 9) for s in range(4)] == [0.25, 0.5, 0.5, 0.5]
