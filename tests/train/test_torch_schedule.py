"""torch's schedulers: the learning rates are theirs, under every runner, and resumed."""

import pytest
import torch

from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import from_dict, to_dict


class Halving(torch.optim.lr_scheduler.LambdaLR):
    """A custom scheduler with a function that no checkpoint could hold."""

    def __init__(self, optimizer):
        super().__init__(optimizer, lambda count: 0.5**count)


def rates(trainer):
    rows = trainer.folder.metrics()
    return [row["lr"] for row in rows if row["split"] == "train"]


def fit(config, clothes):
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    trainer.fit()
    return trainer


def torchs(scheduler, count, lr=1e-3):
    """The learning rates of torch's scheduler at its first ``count`` counts."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    made, found = scheduler(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@pytest.mark.parametrize(
    ("name", "arguments", "made"),
    [
        ("OneCycleLR", {"max_lr": 0.01, "cycle_momentum": False}, {"total_steps": 20}),
        ("CosineAnnealingLR", {}, {"T_max": 20}),
        ("MultiStepLR", {"milestones": [3, 12], "gamma": 0.1}, {}),
    ],
)
def test_steps_have_torchs_rates(config, clothes, name, arguments, made):
    config.optimizer.scheduler, config.optimizer.scheduler_args = name, arguments
    config.optimizer.scheduler_unit, config.log_every = "steps", 1
    kind = getattr(torch.optim.lr_scheduler, name)
    trainer = fit(config, clothes)
    expected = torchs(lambda optimizer: kind(optimizer, **arguments, **made), 20)
    assert rates(trainer) == pytest.approx(expected, rel=1e-12)
    assert trainer.config.runner != "eager" or not torch.cuda.is_available()


def test_a_custom_scheduler_by_epochs_is_resumed_to_the_same_bits(config, clothes, tmp_path):
    config.optimizer.scheduler = f"{__name__}:Halving"
    config.checkpoint.every_steps, config.log_every = 7, 1
    whole = fit(config, clothes)
    assert rates(whole) == [1e-3] * 10 + [5e-4] * 10
    config.out, config.max_steps = str(tmp_path / "stopped"), 13
    stopped = fit(config, clothes)
    on = Trainer.resume(
        stopped.folder.path,
        changes={"max_steps": 0},
        trust=True,
        train_data=clothes[0],
        val_data=clothes[1],
    )
    on.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name])


def test_plateau_uses_the_validation_loss_and_resumes(config, clothes):
    config.epochs, config.optimizer.scheduler = 4, "ReduceLROnPlateau"
    config.optimizer.scheduler_args = {"patience": 0, "factor": 0.1, "threshold": 1e9}
    config.optimizer.scheduler_args |= {"threshold_mode": "abs"}  # nothing is better by so much
    whole = fit(config, clothes)
    by_epoch = sorted({round(rate, 12) for rate in rates(whole)}, reverse=True)
    assert by_epoch == pytest.approx([1e-3, 1e-4, 1e-5])  # the first loss has none before it
    on = Trainer.resume(whole.folder.path, epochs=5, train_data=clothes[0], val_data=clothes[1])
    on.fit()
    assert rates(on)[-1] == pytest.approx(1e-7 if len(by_epoch) > 4 else 1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheduler": "Nothing"}, "has no 'Nothing'"),
        ({"scheduler": "torch.optim:SGD"}, "must lead to a subclass of torch.optim.lr_scheduler"),
        ({"scheduler": "StepLR", "scheduler_args": {"size": 3}}, "don't fit StepLR"),
        ({"scheduler": "StepLR", "decay": "cosine"}, "give either it or them"),
        ({"scheduler_args": {"step_size": 3}}, "need an optimizer.scheduler"),
    ],
)
def test_impossible_settings_are_refused_before_a_folder_is_made(
    config, clothes, tmp_path, values, words
):
    for name, value in values.items():
        setattr(config.optimizer, name, value)
    with pytest.raises(ValueError, match=words):
        Trainer(config, train_data=clothes[0], val_data=clothes[1])
    assert not (tmp_path / "run").exists()


def test_a_file_leads_to_no_code_of_others(config):
    config.optimizer.scheduler = f"{__name__}:Halving"
    values = to_dict(config)
    from vae_fast.train.torch_schedule import TorchSchedule

    with pytest.raises(ValueError, match="was read from a file"):
        TorchSchedule(from_dict(values), 10)
    assert TorchSchedule(from_dict(values, trust=True), 10).at(10) == 5e-4
    assert TorchSchedule(from_dict(to_dict(TrainConfig(optimizer=bare()))), 10).at(25) == 1e-3


def bare():
    from vae_fast.train.config import OptimizerConfig

    return OptimizerConfig(scheduler="ConstantLR", scheduler_args={"factor": 1.0})
