"""Param groups, and an optimizer of its own for each phase: by Python, YAML and the command line."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.train.test_phases import CPU, IMAGES, made, shares
from vae_fast.cli import main
from vae_fast.models import build
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import OptimizerConfig
from vae_fast.train.distributed import World
from vae_fast.train.step import Step

GROUPS = [
    {"parameters": "encoder.*", "lr": 0.1},
    {"parameters": "*.bias", "weight_decay": 0.0, "betas": [0.5, 0.9]},
]


def step_of(optimizer, accumulate=1):
    torch.manual_seed(0)
    model = build("vae", (1, 6, 6), latent_dim=2, network_options={"hidden": [8]})
    config = TrainConfig(lr=0.01, optimizer=optimizer, accumulate=accumulate)
    return Step(model, config, CPU, World(), 5)


def test_groups_are_those_written_by_hand():
    """Patterns in their order, lr as a multiple of the schedule's, arguments of the group alone."""
    optimizer = OptimizerConfig(
        name="adamw", args={"weight_decay": 0.2}, groups=GROUPS, warmup_steps=4
    )
    step = step_of(optimizer)
    torch.manual_seed(7)
    for number, share in enumerate(shares()):
        step(share, number)
    by_hand = step_of(OptimizerConfig()).model
    named = dict(by_hand.named_parameters())
    first = [p for n, p in named.items() if n.startswith("encoder.")]
    second = [p for n, p in named.items() if n.endswith(".bias") and not n.startswith("encoder.")]
    rest = [p for p in named.values() if all(p is not q for q in first + second)]
    assert first and second and rest
    optimizer = torch.optim.AdamW(
        [
            {"params": first},
            {"params": second, "weight_decay": 0.0, "betas": (0.5, 0.9)},
            {"params": rest},
        ],
        lr=0.01,
        weight_decay=0.2,
        fused=True,
    )
    torch.manual_seed(7)
    for number, share in enumerate(shares()):
        lr = 0.01 * min(1.0, (number + 1) / 4)
        for group, scale in zip(optimizer.param_groups, (0.1, 1.0, 1.0), strict=True):
            group["lr"] = lr * scale
        by_hand.loss(share.images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for one, two in zip(step.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_each_phase_has_arguments_of_its_own():
    phases = {"discriminator": {"lr": 4.0, "betas": [0.5, 0.9]}, "generator": {"lr": 0.5}}
    step = made(phases=phases)
    factors = {"reconstruction": 1.0, "discriminator": 4.0, "generator": 0.5}
    names = [phase.name for phase in step.phases]
    assert set(phases) < set(names)
    step.set_schedule_values(0)
    for phase, update in step.each():
        (group,) = update.optimizer.param_groups
        assert group["lr"] == pytest.approx(0.01 * phase.lr * factors.get(phase.name, 1.0))
        assert group["betas"] == ((0.5, 0.9) if phase.name == "discriminator" else (0.9, 0.999))
    before = [p.clone() for p in step.phases[names.index("discriminator")].parameters]
    step(shares()[0], 0)
    after = step.phases[names.index("discriminator")].parameters
    # Adam's first step is the learning rate, whatever the gradient is.
    moved = max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))
    assert moved == pytest.approx(0.04, rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"groups": [{"parameters": "encoder.*"}]}, "has entries .parameters: PATTERN"),
        ({"groups": [{"lr": 0.1}]}, "has entries .parameters: PATTERN"),
        ({"groups": [{"parameters": "*", "lr": 0}]}, r"groups, \*: lr must be above 0"),
        ({"phases": {"generator": 3}}, "has for each phase"),
        ({"phases": {"generator": {"lr": "fast"}}}, "phases.generator: lr must be a number"),
    ],
)
def test_bad_groups(optimizer, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TrainConfig(optimizer=OptimizerConfig(**optimizer)).check_values()


def test_groups_that_the_model_does_not_have():
    for optimizer, message in (
        ({"groups": [{"parameters": "encodr.*", "lr": 0.1}]}, "no parameter is called encodr.*; vae has encoder"),
        ({"groups": [{"parameters": "*", "momentum": 0.1}]}, "adam has no argument momentum; it has lr, betas"),
        ({"phases": {"generator": {"lr": 2.0}}}, "phases.generator: vae has one loss, and no phases"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message.replace("*", r"\*")):
            step_of(OptimizerConfig(**optimizer))
    with pytest.raises(ValueError, match="phases.critic: aae has the phases "):
        made(phases={"critic": {"lr": 2.0}})


def weights(run):
    trainer = Trainer.resume(run, changes={})
    return [p.detach().clone() for p in trainer.step.model.parameters()]


FLAGS = {
    "vae": ["--optimizer.groups", str(GROUPS)],
    "aae": ["--optimizer.phases.discriminator", "{lr: 4.0, betas: [0.5, 0.9]}"],
}


@pytest.mark.parametrize("model", FLAGS)
def test_the_command_line_a_file_and_resuming_to_the_same_bits(model, tmp_path, capsys):
    pytest.importorskip("jsonargparse")
    import numpy as np
    import yaml

    np.save(tmp_path / "images.npy", IMAGES.numpy())
    common = ["train", "--model", model, "--data", str(tmp_path / "images.npy"), "--batch-size", "8",
              "--model-args.latent-dim", "2", "--device", "cpu", "--tensorboard", "off",
              "--runner", "eager", "--lr", "0.01", "--optimizer.name", "adamw"]  # fmt: skip
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main([*common, *FLAGS[model], "--epochs", "4", "--out", str(whole)]) == 0
    config = yaml.safe_load((whole / "config.yaml").read_text())
    if model == "vae":
        assert config["optimizer"]["groups"] == GROUPS
    else:
        assert config["optimizer"]["phases"] == {"discriminator": {"lr": 4.0, "betas": [0.5, 0.9]}}
    # The same by a file, stopped in the middle; a scheduler's arguments in the file count as well.
    own = {key: config["optimizer"][key] for key in ("groups", "phases")}
    own |= {"scheduler": "StepLR", "scheduler_args": {"step_size": 10**6, "gamma": 0.5}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"optimizer": own}))
    flags = ["--config", str(tmp_path / "c.yaml"), "--epochs", "2", "--out", str(halves)]
    assert main([*common, *flags]) == 0
    found = yaml.safe_load((halves / "config.yaml").read_text())["optimizer"]
    assert found["scheduler_args"] == own["scheduler_args"]
    assert main(["resume", str(halves), "--epochs", "4"]) == 0
    for a, b in itertools.zip_longest(weights(whole), weights(halves)):
        assert torch.equal(a, b)
    # Without them the weights are others.
    plain = tmp_path / "plain"
    assert main([*common, "--epochs", "4", "--out", str(plain)]) == 0
    assert not all(map(torch.equal, weights(plain), weights(whole)))


def test_accumulated_and_clipped():
    """Groups meet the guard and gradients in parts."""
    optimizer = OptimizerConfig(groups=GROUPS, clip_norm=1.0)
    one, two = step_of(optimizer), step_of(replace(optimizer), accumulate=2)
    for step in (one, two):
        torch.manual_seed(1)
        step(shares()[0], 0)
        assert step.read_guards()["skipped"] == 0
        assert step.updates[0].flat is None
