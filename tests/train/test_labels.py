"""Few labels through the engine: most hidden, the accuracy on the validation data reported."""

import pytest
import torch

from vae_fast.data import from_array
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import LabelsConfig, from_dict


def patterns(n, seed):
    """Three patterns with flipped pixels, and which."""
    draw = torch.Generator().manual_seed(9)
    shapes = torch.rand(3, 1, 6, 6, generator=draw) > 0.5
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=draw)
    flips = torch.rand(n, 1, 6, 6, generator=draw) < 0.1
    return from_array(shapes[labels] ^ flips, labels)


def test_few_labels_train_a_classifier(tmp_path):
    config = TrainConfig(
        model="ssvae", epochs=8, batch_size=50, lr=3e-3, device="cpu", tensorboard="off", seed=4,
        out=str(tmp_path / "run"), labels=LabelsConfig(keep=6, repeat=10),
        model_args={"latent_dim": 2, "hidden": 24, "network_options": {"hidden": [48]},
                    "condition_options": {"num_classes": 3}, "alpha": 50.0},
    )  # fmt: skip
    trainer = Trainer(config, train_data=patterns(300, 1), val_data=patterns(90, 2))
    shown = trainer.batches.data.labels
    assert len(shown) == 300 + 9 * 6 and int((shown[:300] >= 0).sum()) == 6
    assert (trainer.val_batches.data.labels >= 0).all()
    result = trainer.fit()
    val = patterns(90, 2)
    with torch.no_grad():
        right = trainer.model.eval().predict(val.images).argmax(1) == val.labels
    assert result.diagnostics == {"accuracy": pytest.approx(right.float().mean().item())}
    assert result.diagnostics["accuracy"] > 0.9
    rows = [row for row in trainer.folder.metrics() if row["split"] == "val"]
    assert rows[-1]["accuracy"] == pytest.approx(result.diagnostics["accuracy"])
    again = Trainer(trainer.folder.config(), train_data=patterns(300, 1), val_data=val,
                    folder=trainer.folder)  # fmt: skip
    assert torch.equal(again.batches.data.labels, shown)


def test_the_configuration_is_checked():
    config = from_dict({"labels": {"repeat": 5}})
    with pytest.raises(ValueError, match="labels.repeat is 5, and goes with labels.keep"):
        config.check()
    with pytest.raises(ValueError, match="labels.keep must be at least 0"):
        from_dict({"labels": {"keep": -1}}).check()


def test_more_labels_than_there_are_is_told_before_any_work(tmp_path):
    config = TrainConfig(model="ssvae", device="cpu", out=str(tmp_path / "run"),
                         labels=LabelsConfig(keep=31))  # fmt: skip
    with pytest.raises(ValueError, match="31 labels were to be kept, and array has 30"):
        Trainer(config, train_data=patterns(30, 1), val_data=patterns(9, 2))
    assert not (tmp_path / "run").exists()
