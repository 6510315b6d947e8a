"""The end of a run, and batches taken in parts."""

import math

import pytest
import torch

from tests.train.test_resume import assert_same_run
from vae_fast.train import TrainConfig, Trainer, checkpoint
from vae_fast.train.distributed import Share, World
from vae_fast.train.setup import build_model
from vae_fast.train.step import Step


def run(config, clothes, **changes):
    for name, value in changes.items():
        setattr(config, name, value)
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    trainer.fit()
    return trainer


def rows(trainer, split="val"):
    return [row["step"] for row in trainer.folder.metrics() if row["split"] == split]


def test_max_steps_ends_within_an_epoch_and_may_be_moved(config, clothes, tmp_path):
    """10 steps per epoch; the continued run equals an uninterrupted one, except its rows."""
    short = run(config, clothes, max_steps=13)
    assert short.progress.step == 13 and short.progress.epoch == 1 and rows(short) == [10, 13]
    assert [r["epoch"] for r in short.folder.metrics() if r["split"] == "val"] == [1, 2]
    assert checkpoint.load(short.folder.checkpoints / "last").path.name.endswith("13")
    again = Trainer.resume(short.folder.path, train_data=clothes[0], val_data=clothes[1])
    again.fit()
    assert again.progress.step == 13 and rows(again) == [10, 13]
    on = Trainer.resume(
        short.folder.path, changes={"max_steps": 0}, train_data=clothes[0], val_data=clothes[1]
    )
    on.fit()
    whole = run(config, clothes, max_steps=0, out=str(tmp_path / "whole"))
    assert on.progress.step == whole.progress.step == 20 and rows(on) == [10, 13, 20]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name])


def test_a_run_that_was_killed_before_its_last_validation_takes_no_step_more(config, clothes):
    config.max_steps, config.checkpoint.every_steps = 13, 13
    config.checkpoint.every_epochs = 0
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    real = trainer.validate

    def killed():
        if trainer.progress.step == 13:
            raise KeyboardInterrupt
        real()

    trainer.validate = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    again = Trainer.resume(trainer.folder.path, train_data=clothes[0], val_data=clothes[1])
    assert again.progress.step == 13 and again.progress.validated == 10
    again.fit()
    assert again.progress.step == 13 and rows(again)[-1] == 13


def test_a_cosine_ends_with_the_run(config, clothes):
    config.optimizer.decay = "cosine"
    trainer = run(config, clothes, max_steps=13, log_every=1)
    last = [row["lr"] for row in trainer.folder.metrics() if row["split"] == "train"][-1]
    assert last == pytest.approx(config.lr * 0.5 * (1 + math.cos(math.pi * 12 / 13)))


def test_early_stop_counts_validations_and_is_resumed(config, clothes):
    """No validation is the best, because a better one is recorded."""
    config.early_stop, config.epochs = 3, 9
    options = {"train_data": clothes[0], "val_data": clothes[1]}

    def fit(trainer):
        trainer.progress.best = -1e30
        trainer.fit()
        return trainer.progress.epoch, trainer.progress.stale

    first = Trainer(config, **options)
    assert fit(first) == (3, 3)
    assert fit(Trainer.resume(first.folder.path, **options)) == (3, 3)
    longer = Trainer.resume(first.folder.path, changes={"early_stop": 5}, **options)
    assert fit(longer) == (5, 5)


def test_a_batch_in_parts_has_the_batchs_loss_and_gradients(config, clothes):
    """100 samples in 7 parts of 14 and 15, of a model that draws no noise."""
    config.model, found = "ae", []
    for config.accumulate in (1, 7):
        torch.manual_seed(0)
        model = build_model(config, (1, 28, 28))
        step = Step(model, config, torch.device("cpu"), World(), 10)
        step.set_schedule_values(0)
        terms = step.differentiate(Share(clothes[0][:100], None), *next(step.each()))
        found.append([*(t.detach() for t in terms), *(p.grad.clone() for p in model.parameters())])
    assert "accumulate takes batches in parts" in step.runner_is
    for whole, parts in zip(*found, strict=True):
        assert (whole - parts).abs().max() <= 2e-6 * whole.abs().max()


def test_models_with_phases_take_parts_too(config, clothes):
    trainer = run(config, clothes, model="aae", max_steps=3, accumulate=7)
    assert trainer.progress.step == 3 and trainer.step.consecutive_not_finite == 0


def test_parts_are_resumed_to_the_same_bits(config, clothes, tmp_path):
    config.accumulate, config.checkpoint.every_steps = 3, 7
    whole = run(config, clothes)
    config.out = str(tmp_path / "stopped")
    stopped = run(config, clothes, max_steps=7)
    on = Trainer.resume(
        stopped.folder.path, changes={"max_steps": 0}, train_data=clothes[0], val_data=clothes[1]
    )
    on.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("accumulate", 0, "accumulate must be at least 1, got 0"),
        ("accumulate", 101, "at most batch_size, 100, got 101"),
        ("max_steps", -1, "max_steps must be at least 0"),
        ("early_stop", -1, "early_stop must be at least 0"),
    ],
)
def test_bad_values(config, name, value, words):
    setattr(config, name, value)
    with pytest.raises(ValueError, match=words):
        config.check()


def test_several_processes_take_no_parts(config):
    config.accumulate = 2
    world = World(2)
    model = build_model(config, (1, 28, 28))
    with pytest.raises(
        ValueError, match="accumulate 2 needs a single process, and 2 share each batch: set it to 1"
    ):
        world.wrap = lambda model, *_, **__: model
        Step(model, TrainConfig(accumulate=2, device="cpu"), torch.device("cpu"), world, 3)


def test_the_run_is_the_same_whether_or_not_it_was_stopped(config, clothes, tmp_path):
    """early_stop's count and max_steps are part of what a checkpoint holds."""
    config.early_stop, config.max_steps = 9, 17
    whole = run(config, clothes)
    config.out = str(tmp_path / "again")
    other = run(config, clothes)
    assert_same_run(whole, other)


class Pictures(torch.utils.data.Dataset):
    """Items that have to be made one by one."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].clone()


def test_workers_change_no_bit_and_resume_within_an_epoch(config, clothes, tmp_path):
    sets = [Pictures(images[:300]) for images in clothes]
    config.epochs, config.runner = 1, "eager"
    whole = run(config, sets)
    config.out, config.max_steps, config.workers = str(tmp_path / "workers"), 2, 2
    stopped = run(config, sets)
    options = {"train_data": sets[0], "val_data": sets[1]}
    on = Trainer.resume(stopped.folder.path, changes={"max_steps": 0, "workers": 1}, **options)
    on.fit()
    assert on.batches._loader.num_workers == 1 and stopped.batches._loader.num_workers == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name])
