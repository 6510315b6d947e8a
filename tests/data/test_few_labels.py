"""Labels kept for a few samples, hidden for the rest."""

import numpy as np
import pytest
import torch

from vae_fast.data import from_array, keep_labels, load


def thirty(labels=None):
    images = torch.arange(30, dtype=torch.uint8).repeat(4, 1).t().contiguous()
    return from_array(images, torch.arange(30) % 3 if labels is None else labels)


def test_every_class_keeps_as_many_and_the_rest_is_hidden():
    data = thirty()
    few = keep_labels(data, 12, seed=5)
    shown = few.labels >= 0
    assert int(shown.sum()) == 12 and (few.labels[~shown] == -1).all()
    assert few.labels[shown].bincount().tolist() == [4, 4, 4]
    assert torch.equal(few.labels[shown], data.labels[shown])
    assert few.images is data.images
    assert torch.equal(keep_labels(data, 12, seed=5).labels, few.labels)
    assert not torch.equal(keep_labels(data, 12, seed=6).labels, few.labels)
    assert keep_labels(data, 11).labels.clamp_min(-1).add(1).bincount()[1:].sum() == 11


def test_a_rare_class_leaves_its_part_to_the_others():
    labels = torch.tensor([0] * 20 + [1] * 8 + [2] * 2)
    few = keep_labels(thirty(labels), 15, seed=0).labels
    assert few[few >= 0].bincount().tolist() == [7, 6, 2]


def test_labelled_samples_are_repeated():
    few = keep_labels(thirty(), 6, seed=1, repeat=4)
    assert len(few) == len(few.images) == 30 + 3 * 6
    kept = (few.labels[:30] >= 0).nonzero().squeeze(1)
    counts = few.images[:, 0].long().bincount(minlength=30)
    assert (counts[kept] == 4).all() and counts.sum() == 48
    assert torch.equal(few.labels[30:], few.labels[kept].repeat(3))
    assert torch.equal(few.images[30:], few.images[kept].repeat(3, 1))


def test_the_embedded_images_keep_ten_of_a_class():
    few = keep_labels(load("fashion10k"), 100)
    assert few.labels[few.labels >= 0].bincount().tolist() == [10] * 10


@pytest.mark.parametrize(
    ("data", "keep", "error", "message"),
    [
        (thirty(), 31, ValueError, "31 labels are to be kept, and array has 30: keep from 1"),
        (thirty(), 0, ValueError, "0 labels are to be kept"),
        (from_array(torch.rand(4, 3)), 2, ValueError, "array has no labels"),
    ],
)
def test_refusals(data, keep, error, message):
    with pytest.raises(error, match=message):
        keep_labels(data, keep)


def test_data_on_disk_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 3), np.uint8))
    mapped = from_array(np.load(tmp_path / "x.npy", mmap_mode="r"), torch.zeros(5, dtype=int))
    with pytest.raises(TypeError, match="needs data in memory"):
        keep_labels(mapped, 2)
