import dataclasses

import pytest
import torch

from vae_fast.train.config import ObjectiveConfig, TrainConfig, from_dict, resolve_device, to_dict


def test_dict_round_trip_keeps_every_value():
    config = TrainConfig(
        model="beta-vae",
        model_args={"latent_dim": 3},
        lr=3e-4,
        objective=ObjectiveConfig(beta=2.5),
    )
    assert from_dict(to_dict(config)) == config


def test_unknown_keys_are_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="'epoch' is unknown.*did you mean 'epochs'"):
        from_dict({"epoch": 3})
    with pytest.raises(ValueError, match=r"'objective.bta' is unknown.*'objective.beta'"):
        from_dict({"objective": {"bta": 1.0}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -5}, "batch_size must be at least 1, got -5"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0, got nan"),
        (
            {"precision": "bf61"},
            "precision 'bf61' is unknown: it is one of fp32, bf16, fp16; did you",
        ),
        ({"device": "gpu"}, "device 'gpu' is unknown: use auto, cpu, cuda"),
        ({"objective": ObjectiveConfig(beta=-1.0)}, "objective.beta must be at least 0"),
    ],
)
def test_values_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TrainConfig(), **change).check()


def test_default_config_is_sound():
    TrainConfig().check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_says_why():
    with pytest.raises(ValueError, match="finds no GPU|built without CUDA"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_a_heading_with_nothing_under_it_is_the_defaults():
    assert from_dict({"objective": None}) == TrainConfig()
    with pytest.raises(TypeError, match=r"objective must be a ObjectiveConfig \(.*got 3"):
        from_dict({"objective": 3}).check()
