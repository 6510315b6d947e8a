"""Few labels through the engine: most hidden, the accuracy on the validation data reported."""

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from vae_fast.data import as_data, from_array
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
    with pytest.raises(ValueError, match="labels.repeat is 5, and needs labels.keep"):
        config.check()
    with pytest.raises(ValueError, match="labels.keep must be at least 0"):
        from_dict({"labels": {"keep": -1}}).check()


def test_too_many_labels_to_keep_are_refused_before_any_work(tmp_path):
    config = TrainConfig(model="ssvae", device="cpu", out=str(tmp_path / "run"),
                         labels=LabelsConfig(keep=31))  # fmt: skip
    with pytest.raises(ValueError, match="31 labels are to be kept, and array has 30"):
        Trainer(config, train_data=patterns(30, 1), val_data=patterns(9, 2))
    assert not (tmp_path / "run").exists()


class Listed(Dataset):
    """Images with a list of their labels, as torchvision's data sets have one."""

    def __init__(self, images, targets, change=int):
        self.images, self.targets, self.change = images, targets, change

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index > 0:
            assert self.change is not int or self.targets[index] > 2, "an image too many was read"
        return self.images[index], self.change(self.targets[index])


class Stream(IterableDataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __iter__(self):
        return iter(zip(self.images, self.labels.tolist(), strict=True))


IMAGES = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
WRONG = torch.arange(24) % 3
WRONG[17] = 5
KNOWN = {
    "targets": Listed(IMAGES, WRONG.tolist()),
    "tensors": TensorDataset(IMAGES, WRONG),
    "joined and chosen": ConcatDataset(
        [TensorDataset(IMAGES[:9], WRONG[:9]), Subset(TensorDataset(IMAGES, WRONG), range(9, 24))]
    ),
}
SENTENCE = (
    "the label 5, and cvae with num_classes=3 takes 0 to 2: --model-args.condition_options.num_cl"
)


def trainer(tmp_path, train, val=None):
    config = TrainConfig(
        model="cvae", epochs=1, batch_size=8, device="cpu", tensorboard="off",
        out=str(tmp_path / "run"), model_args={"latent_dim": 2, "hidden": 8,
                    "condition_options": {"num_classes": 3}},
    )  # fmt: skip
    return Trainer(config, train_data=train, val_data=val or from_array(IMAGES, WRONG.clamp(max=2)))


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("validation", [False, True])
def test_a_datasets_label_out_of_range_is_seen_before_there_is_a_folder(tmp_path, kind, validation):
    right = from_array(IMAGES, WRONG.clamp(max=2))
    parts = (right, KNOWN[kind]) if validation else (KNOWN[kind], right)
    with pytest.raises(ValueError, match=SENTENCE):
        trainer(tmp_path, *parts)
    assert not (tmp_path / "run").exists()


def test_labels_that_a_transform_changes_are_those_of_the_items(tmp_path):
    trainer(tmp_path, Listed(IMAGES, (WRONG + 10).tolist(), lambda y: min(y - 10, 2))).fit()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streams_first_label_out_of_range_ends_the_run_with_the_flag(tmp_path, workers):
    """Also on a GPU, where the model's check would wait: the label is checked when it is read."""
    run = trainer(tmp_path, as_data(Stream(IMAGES, WRONG), samples=24))
    run.batches._workers = workers
    with pytest.raises(ValueError, match=f"Stream, item 17, has {SENTENCE}"):
        run.fit()
    assert run.progress.step <= 2
