"""The engine on a GPU: its captured step against eager ones, resuming under it, and fp16."""

from __future__ import annotations

import pytest
import torch

from tests.models.test_every_model import NAMES, OPTIONS, SHAPE
from vae_fast.data import as_data
from vae_fast.models import BetaVAE, build
from vae_fast.train import ObjectiveConfig, OptimizerConfig, TrainConfig, Trainer

pytestmark = pytest.mark.cuda


@pytest.fixture
def data() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1000, 1, 8, 8), dtype=torch.uint8, generator=generator)


def trainer(data, out, *, captured=True, **options) -> Trainer:
    config = TrainConfig(
        epochs=3, batch_size=100, log_every=4, device="cuda", out=str(out), ema=0.9,
        model_args={"latent_dim": 4, "network_options": {"hidden": [32]}},
        objective=ObjectiveConfig(schedule="linear", period=9, unit="steps"),
        optimizer=OptimizerConfig(warmup_steps=4, decay="cosine", clip_norm=20.0, skip_above=5.0),
        runner="graph" if captured else "eager",
        **options,
    )  # fmt: skip
    made = Trainer(config, train_data=data, val_data=data[:200])
    return made


def numbers(made: Trainer) -> list[dict]:
    times = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in made.folder.metrics()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_steps_give_the_numbers_of_eager_ones(data, tmp_path, precision):
    """In few launches, which round differently."""
    made = []
    for captured in (True, False):
        made.append(trainer(data, tmp_path / str(captured), captured=captured, precision=precision))
        made[-1].fit()
    assert made[0].step.runner._outputs, "no step was captured"
    assert made[0].step.runner.how == "", made[0].step.runner_is
    of_loss, of_row = (1e-3, 1e-2) if precision == "fp32" else (1e-2, 5e-2)
    assert made[0].fit().loss == pytest.approx(made[1].fit().loss, rel=of_loss)
    for row, other in zip(numbers(made[0]), numbers(made[1]), strict=True):
        assert row == pytest.approx(other, rel=of_row, nan_ok=True)


def test_batches_of_another_size_are_taken_eagerly(data, tmp_path):
    with pytest.warns(UserWarning, match="is taken eagerly"):
        trainer(data[:950], tmp_path / "run").fit()


def test_a_run_resumed_under_a_graph_has_the_bits_of_one_never_stopped(data, tmp_path):
    whole = trainer(data, tmp_path / "whole")
    whole.fit()
    cut = trainer(data, tmp_path / "cut")
    take = cut.step.runner.__call__

    def stopping(share):
        if cut.progress.step == 17:
            raise KeyboardInterrupt
        return take(share)

    stopping.name, stopping.why_not = "graph", ""
    cut.step.runner = stopping
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    cut = Trainer.resume(cut.folder.path, train_data=data, val_data=data[:200])
    assert cut.progress.step == 10
    cut.fit()
    assert numbers(cut) == numbers(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, cut.model.state_dict()[name]), name


def test_no_step_waits_for_the_gpu(data, tmp_path):
    made = trainer(data, tmp_path / "run")
    shares = list(made.world.shares(made.batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, share in enumerate(shares):
            made.step(share, number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_networks_are_captured(data, tmp_path):
    losses = []
    for compile_ in (True, False):
        made = trainer(data, tmp_path / str(compile_), compile=compile_)
        losses.append(made.fit().loss)
        assert made.step.runner.is_captured, made.step.runner_is
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("condition", [None, "edges"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_captured_or_says_why(name, condition, tmp_path):
    """Every model with one loss is captured, and what it derives from a batch stays on the GPU."""
    if condition is not None and name != "cvae":
        pytest.skip("a condition of the cvae's")
    options = dict(OPTIONS[name])
    if condition is not None:
        options = {**options, "condition": condition}
        options.pop("condition_options", None)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=generator)
    config = TrainConfig(
        model=name, model_args=options, epochs=1, batch_size=8, device="cuda", out=str(tmp_path)
    )
    given = as_data((images, torch.arange(64) % 10))
    made = Trainer(config, train_data=given, val_data=given)
    assert torch.tensor(made.fit().loss).isfinite()
    if made.step.runner.name == "graph":
        assert made.step.runner.is_captured, made.step.runner_is
    else:
        assert len(made.step.phases) > 1


class Reads(BetaVAE):
    """A model that reads a value on the host."""

    def loss(self, x, **options):
        out = super().loss(x, **options)
        assert out.recon.item() > 0
        return out


def reads(input_shape, **options):
    model = build("vae", input_shape, **options)
    model.__class__ = Reads
    return model


def test_a_model_that_reads_on_the_host_trains_uncaptured(data, tmp_path):
    made = trainer(data, tmp_path, model="tests.cuda.test_training:reads")
    made.fit()
    assert "waits for the device" in made.step.refused["graph"]
