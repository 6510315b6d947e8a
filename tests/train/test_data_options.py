"""Binarisation, augmentation and streams in a run: from the config, resumed to the same bits."""

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from tests.train.test_resume import Killed, assert_same_run, stop_at
from vae_fast.evaluate import evaluate_run
from vae_fast.train import Trainer


class Roll(nn.Module):
    def forward(self, images):
        return images.roll(int(torch.randint(8, ())), -1)


ROLL = {"name": f"{__name__}:Roll"}


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __iter__(self):
        return iter(self.images)


class Normalise(nn.Module):
    def forward(self, images):
        return images / 127.5 - 1


def test_augmentation_that_leaves_0_to_1_is_refused_by_a_bernoulli_likelihood(config, clothes):
    data = dict(zip(("train_data", "val_data"), clothes, strict=True))
    config.augment = [{"name": f"{__name__}:Normalise"}]
    trainer = Trainer(config, **data)
    with pytest.raises(ValueError, match=r"augmented: floating-point values must lie in \[0, 1\]"):
        trainer.fit()


@pytest.mark.parametrize(
    "options", [{"binarize": "dynamic"}, {"binarize": "static"}, {"augment": [ROLL]}], ids=str
)
def test_a_run_resumed_in_the_middle_of_an_epoch_has_the_same_bits(
    config, clothes, tmp_path, options
):
    data = dict(zip(("train_data", "val_data"), clothes, strict=True))
    for name, value in options.items():
        setattr(config, name, value)
    config.checkpoint.every_steps = 3
    whole = Trainer(config, **data)
    whole.fit()
    config.out = str(tmp_path / "stopped")
    stopped = Trainer(config, **data)
    stop_at(stopped, 14, Killed())
    with pytest.raises(Killed):
        stopped.fit()
    torch.manual_seed(123)
    resumed = Trainer.resume(config.out, trust={ROLL["name"]}, **data)
    assert resumed.progress.step == 12
    resumed.fit()
    assert_same_run(whole, resumed)
    for name, value in {"binarize": "none", "augment": []}.items():
        setattr(config, name, value)
    config.out = str(tmp_path / "plain")
    plain = Trainer(config, **data)
    plain.fit()
    with pytest.raises(AssertionError):  # the option does something
        assert_same_run(whole, plain)


def test_images_of_training_and_evaluation_of_a_binarised_run(config, clothes):
    train, val = clothes
    config.binarize = "dynamic"
    trainer = Trainer(config, train_data=train, val_data=val)
    first, second = (torch.cat([b.images for b in trainer.batches]) for _ in range(2))
    assert first.dtype == torch.bool and first.double().mean() == pytest.approx(
        train.double().mean().item() / 255, abs=2e-3
    )
    assert not torch.equal(first.sum(0), second.sum(0))
    judged = [torch.cat([b.images for b in trainer.val_batches]) for _ in range(2)]
    assert torch.equal(*judged) and judged[0].dtype == torch.bool


def test_a_report_says_that_the_data_are_binarised(config):
    config.binarize, config.epochs, config.batch_size = "dynamic", 1, 1000
    Trainer(config).fit()
    report = evaluate_run(config.out, num_samples=0, samples=100)
    assert report["pixels"] == "binary"
    assert report["binarized"] == "Bernoulli(x / 255), drawn with seed 0"


def test_bad_options_cost_nothing(config, clothes):
    config.binarize = "dynamical"
    with pytest.raises(ValueError, match="binarize 'dynamical'.*did you mean 'dynamic'"):
        config.check()
    config.binarize, config.augment = "none", ["RandomCrop"]
    with pytest.raises(ValueError, match="each entry of augment"):
        config.check()
    config.binarize, config.augment = "dynamic", []
    with pytest.raises(TypeError, match="uint8 images"):
        Trainer(config, train_data=clothes[0] / 255, val_data=clothes[1] / 255)


def test_training_on_a_stream(config, clothes):
    train, val = clothes
    trainer = Trainer(config, train_data=Stream(train), val_data=Stream(val))
    result = trainer.fit()
    assert trainer.progress.step == 20 and result.loss < 530
