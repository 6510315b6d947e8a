"""Models with several losses: each has its own parameters, optimizer and guard in the engine."""

import copy
import json
import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.train import ranks
from vae_fast.data import Batches, load
from vae_fast.models import build
from vae_fast.models.phases import Phase
from vae_fast.train import TrainConfig, Trainer, TrainingError
from vae_fast.train.config import OptimizerConfig
from vae_fast.train.distributed import Share, World
from vae_fast.train.keeping import pointed_folder
from vae_fast.train.step import Step
from vae_fast.types import LossOutput

CPU = torch.device("cpu")
IMAGES = torch.randint(
    0, 256, (40, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)


def made(simultaneous=False, **optimizer):
    torch.manual_seed(0)
    model = build("aae", (1, 6, 6), latent_dim=2, network_options={"hidden": [8]},
                  discriminator_hidden=[8], simultaneous=simultaneous)  # fmt: skip
    config = TrainConfig(model="aae", lr=0.01, optimizer=OptimizerConfig(**optimizer))
    return Step(model, config, CPU, World(), 5)


def shares():
    return list(World().shares(Batches(IMAGES, 8, shuffle=False)))


def test_a_step_is_the_phases_in_turn():
    """The engine's updates are those of three optimizers written out by hand."""
    step = made()
    torch.manual_seed(7)
    for number, share in enumerate(shares()):
        step(share, number)
    found = [p.detach().clone() for p in step.model.parameters()]
    by_hand = made().model
    optimizers = [
        (phase.name, torch.optim.Adam(phase.parameters, lr=0.01 * phase.lr, fused=True))
        for phase in by_hand.phases()
    ]
    assert [phase.lr for phase in by_hand.phases()] == [1.0, 1.0, by_hand.generator_lr]
    torch.manual_seed(7)
    losses = []
    for share in shares():
        losses.append([])
        for name, optimizer in optimizers:
            loss = by_hand.loss(share.images, phase=name).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    for one, two in zip(found, by_hand.parameters(), strict=True):
        assert torch.equal(one, two)
    means, samples = step.meter.read()
    assert samples == 40
    assert means["loss"] == pytest.approx(sum(map(sum, losses)) / 5, rel=1e-5)
    row = step.read_guards()
    assert {f"grad_norm_{name}" for name, *_ in by_hand.phases()} | {"skipped"} == set(row)
    assert row["skipped"] == 0 and all(value >= 0 for value in row.values())


def test_losses_at_once_take_one_step():
    """Each network's update is that of its own losses, all at the same weights, and the step can be
    recorded."""
    step, x = made(simultaneous=True), torch.rand(8, 1, 6, 6)
    by_hand = made().model
    losses = {name: by_hand.loss(x, phase=name).loss for name, *_ in by_hand.phases()}
    codes = [*by_hand.encoder.parameters(), *by_hand.decoder.parameters()]
    own = list(by_hand.discriminator.parameters())
    (losses["reconstruction"] + losses["generator"]).backward()
    assert all(p.grad is None for p in own)
    torch.manual_seed(7)
    by_hand.loss(x, phase="discriminator").loss.backward()
    torch.optim.Adam([*codes, *own], lr=0.01).step()
    torch.manual_seed(7)
    step(Share(x, None), 0)
    assert "recorded" in step.runner_is and len(step.updates) == 1
    for one, two in zip(step.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_ddp_knows_whether_a_loss_reaches_every_parameter():
    """VAE-GAN's losses do not depend on the likelihood's own parameter."""
    seen = []

    class Watched(World):
        def wrap(self, model, *_, every_parameter):
            seen.append(every_parameter)
            return model

    gan = {"objective": "vae-gan", "objective_options": {"channels": 4}}
    shared = {"likelihood": "gaussian", "likelihood_options": {"variance": "shared"}}
    for options in (gan, {**gan, **shared}):
        Step(build("vae", (1, 8, 8), **options), TrainConfig(), CPU, Watched(), 5)
    Step(build("aae", (1, 6, 6)), TrainConfig(model="aae"), CPU, Watched(), 5)
    assert seen == [True, False, False]


def test_a_resumed_step_has_the_same_bits():
    step, again = made(), made()
    torch.manual_seed(3)
    for number, share in enumerate(shares()[:2]):
        step(share, number)
    again.model.load_state_dict(step.model.state_dict())
    again.load_state_dict(copy.deepcopy(step.state_dict()))  # as through a file
    for either in (step, again):
        torch.manual_seed(4)
        for number, share in enumerate(shares()[2:], start=2):
            either(share, number)
    for one, two in zip(step.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)
    fresh = made()
    fresh.model.load_state_dict(again.model.state_dict())
    assert len(fresh.state_dict()["updates"]) == 3
    with pytest.raises(ValueError, match="3 optimizers were saved, the model has 1"):
        Step(build("ae", (1, 6, 6)), TrainConfig(model="ae"), CPU, World(), 5).load_state_dict(
            step.state_dict()
        )


def latent_diffusion(start, **config):
    torch.manual_seed(0)
    sizes = {"channels": 4, "multipliers": [1, 2], "groups": 2}
    options = {"channels": 4, "start": start, "adversarial": 5.0}
    model = build("autoencoder-kl", (1, 6, 6), objective="latent-diffusion",
                  objective_options=options, **sizes)  # fmt: skip
    config = TrainConfig(model="autoencoder-kl", lr=0.01, **config)
    return Step(model, config, CPU, World(), 5)


@pytest.mark.parametrize("optimizer", [{}, {"name": "adamw", "args": {"weight_decay": 0.5}}])
def test_a_discriminator_that_has_not_begun_is_left_as_it_is(optimizer):
    """Its optimizer counts no step, so that its first ones have Adam's bias correction, also after
    resuming."""
    step = latent_diffusion(start=3, optimizer=OptimizerConfig(**optimizer))
    judge = step.model.objective.discriminator
    first = copy.deepcopy(judge.state_dict())
    moved, counts = [], []
    for number, share in enumerate(shares()):
        if number == 3:
            torch.manual_seed(6)
            kept = copy.deepcopy((step.model.state_dict(), step.state_dict()))
        step(share, number)
        state = step.updates[1].optimizer.state.values()
        counts.append({int(s["step"]) for s in state})
        moved.append(max((p - first[k]).abs().max().item() for k, p in judge.state_dict().items()))
        row = step.read_guards()
        assert (row["grad_norm_discriminator"] is None) == (number < 2)
    assert counts == [set(), set(), {1}, {2}, {3}]
    assert moved[:2] == [0, 0] and moved[2] == pytest.approx(0.01, rel=0.6)
    again = latent_diffusion(start=3, optimizer=OptimizerConfig(**optimizer))
    assert not again.model.objective.has_begun()
    again.model.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    torch.manual_seed(6)
    for number, share in enumerate(shares()[3:], start=3):
        again(share, number)
    for one, two in zip(step.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("objective", "options", "latest"),
    [
        ("latent-diffusion", {"channels": 4, "start": 2}, True),
        ("latent-diffusion", {"channels": 4, "start": 99}, False),
        ("vae-gan", {"channels": 4}, True),
    ],
)
def test_the_best_is_the_latest_where_losses_do_not_rank(
    tmp_path, monkeypatch, objective, options, latest
):
    """A discriminator that validation leaves out, or whose features are the measure."""
    args = {"latent_dim": 2, "network_options": {"hidden": [8]}}
    args |= {"objective": objective, "objective_options": options}
    config = TrainConfig(model="vae", model_args=args, epochs=2)
    config.batch_size, config.out, config.device = 20, str(tmp_path / "run"), "cpu"
    config.tensorboard, config.early_stop = "off", 1
    data = load(IMAGES)
    trainer = Trainer(config, train_data=data, val_data=data)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    trainer.progress.best = -1e9  # no loss is below it
    trainer.fit()
    best, last = (pointed_folder(tmp_path / "run" / "checkpoints", n) for n in ("best", "last"))
    assert best == (last if latest else None)
    assert trainer.progress.epoch == (2 if latest else 1)  # stopped early, if at all


def test_the_best_has_a_finite_loss_where_losses_do_not_rank(tmp_path, monkeypatch):
    args = {"latent_dim": 2, "network_options": {"hidden": [8]}}
    args |= {"objective": "vae-gan", "objective_options": {"channels": 4}}
    config = TrainConfig(model="vae", model_args=args, epochs=2)
    config.batch_size, config.out, config.device = 20, str(tmp_path / "run"), "cpu"
    config.tensorboard = "off"
    data = load(IMAGES)
    trainer = Trainer(config, train_data=data, val_data=data)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    objective = trainer.step.objective

    def broken(*arguments, **options):
        terms = objective(*arguments, **options)
        fails = trainer.progress.epoch == 2 and not torch.is_grad_enabled()
        return LossOutput(*(term * math.nan for term in terms)) if fails else terms

    monkeypatch.setattr(trainer.step, "objective", broken)
    with pytest.raises(TrainingError, match="not finite"):
        trainer.fit()
    best, last = (pointed_folder(tmp_path / "run" / "checkpoints", n) for n in ("best", "last"))
    assert int(best.name) < int(last.name) and math.isfinite(trainer.progress.best)


def test_a_batch_in_parts_is_one_step():
    step = latent_diffusion(start=9, accumulate=4)
    risen = build("vae", (1, 6, 6), latent_dim=2, objective="capacity",
                  network_options={"hidden": [8]})  # fmt: skip
    other = Step(risen, TrainConfig(accumulate=3), CPU, World(), 5)
    for number, share in enumerate(shares()):
        step(share, number)
        other(share, number)
    assert step.model.objective.steps == 5 and risen.objective.steps == 5


class Rivals(nn.Module):
    """Two parameters, one of whose losses turns infinite."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def phases(self):
        return [Phase("a", [self.a]), Phase("b", [self.b])]

    def forward(self, x, *, phase, beta):
        loss = self.a * 2.0 if phase == "a" else self.b * x.max()
        return LossOutput(loss, loss, torch.zeros(()))


def test_a_phase_that_is_not_finite_is_skipped_alone():
    model = Rivals()
    config = TrainConfig(lr=0.1, optimizer=OptimizerConfig(name="torch.optim:SGD"))
    step = Step(model, config, CPU, World(), 3)
    for number, value in enumerate((1.0, math.inf, math.nan)):
        (share,) = World().shares(Batches(torch.zeros(4, 1), 4, shuffle=False))
        step(share._replace(images=torch.full((4, 1), value)), number)
    assert model.a.item() == pytest.approx(1.0 - 3 * 0.2)
    assert model.b.item() == pytest.approx(1.0 - 0.1)
    assert step.read_guards()["skipped"] == 2 and step.consecutive_not_finite == 2
    assert step.meter.read()[0]["loss"] == pytest.approx(3.0)  # of the first step alone


PROGRAM = """
import os, sys, torch
from vae_fast.data import Batches
from vae_fast.models import build
from vae_fast.train import TrainConfig
from vae_fast.train.distributed import World
from vae_fast.train.step import Step

torch.set_num_threads(1)
world, cpu = World(), torch.device("cpu")
world.join(cpu)
torch.manual_seed(0)
model = build("aae", (1, 6, 6), latent_dim=2, network_options={"hidden": [8]},
              discriminator_hidden=[8]).double()
draws = torch.randn(3, 12, 2, dtype=torch.float64)
step = Step(model, TrainConfig(model="aae", lr=0.01), cpu, world, 3)
images = torch.randint(0, 256, (12, 1, 6, 6), dtype=torch.uint8)
from vae_fast.models import call
for number in range(3):
    # The ranks' draws are of their own; here each has its part of the same ones.
    part = draws[number][world.rank * 12 // world.size : (world.rank + 1) * 12 // world.size]
    call.reparameterize = lambda *_, part=part, **__: part
    for share in world.shares(world.batches(images, 12, shuffle=False)):
        step(share, number)
if world.is_main:
    torch.save([p.detach() for p in model.parameters()], sys.argv[1])
world.leave()
os._exit(0)  # the teardown may abort: docs/design-traps.md
"""


def run_ranks(size, path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port)}  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)],
                         env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]  # fmt: skip
    assert [rank.wait(timeout=300) for rank in ranks] == [0] * size
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(tmp_path):
    alone, shared = (run_ranks(size, tmp_path / f"{size}.pt") for size in (1, 2))
    for one, two in zip(alone, shared, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_phases_shared_out_by_fsdp_are_those_of_ddp(tmp_path):
    """On two ranks: the same weights and losses, no gradient outside its phase, the same bits from
    a checkpoint."""
    out = tmp_path / "phases.json"
    processes = ranks.start(2, "-m", "tests.train.phases_ranks", out)
    assert [p.wait() for p in processes] == [0, 0]
    results = json.loads(out.read_text())
    assert len(results) == 8
    for name, found in results.items():
        assert found["off"] < 5e-4 and found["leaked"] == [] and found["resumed"], (name, found)
        assert found["loss"][1] == pytest.approx(found["loss"][0], rel=1e-5), name
        assert found["moved"] > 0.7 * found["of"], (name, found)
