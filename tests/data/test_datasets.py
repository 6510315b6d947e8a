"""torch Datasets of every common kind of item."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from vae_fast.data import Batches, DatasetData, as_data


class Items(Dataset):
    """A Dataset over a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class PictureLike:
    """The part of a PIL image that is used, for tests without Pillow."""

    def __init__(self, array, mode):
        self.array, self.mode = array, mode

    def getbands(self):
        return tuple(self.mode)

    def convert(self, mode):
        return PictureLike(np.stack([self.array] * 3, axis=2), mode)

    def __array__(self, dtype=None, copy=None):
        return self.array


RGB = np.random.RandomState(5).randint(0, 256, (6, 8, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda i: torch.from_numpy(GREY[i]), GREY[:, None]),
        (lambda i: torch.from_numpy(RGB[i].transpose(2, 0, 1).copy()), RGB.transpose(0, 3, 1, 2)),
        (lambda i: RGB[i], RGB.transpose(0, 3, 1, 2)),
        (lambda i: GREY[i], GREY[:, None]),
        (lambda i: GREY[i].ravel(), GREY.reshape(6, -1)),
        (lambda i: PictureLike(GREY[i], "L"), GREY[:, None]),
        (lambda i: PictureLike(RGB[i], "RGB"), RGB.transpose(0, 3, 1, 2)),
        (lambda i: PictureLike(GREY[i], "P"), np.repeat(GREY[:, None], 3, 1)),
    ],
)
@pytest.mark.parametrize("labels", [False, True])
def test_items_of_every_kind(make, expected, labels):
    data = as_data(Items([(make(i), i % 3) if labels else make(i) for i in range(6)]))
    assert isinstance(data, DatasetData) and data.shape == expected.shape[1:]
    for read in (data, as_data(data, keep_in_memory=True)):
        batch = next(iter(Batches(read, 6, shuffle=False)))
        assert batch.images.dtype == torch.uint8
        np.testing.assert_array_equal(batch.images.numpy(), expected)
        assert (batch.labels.tolist() if labels else batch.labels) == (
            [0, 1, 2, 0, 1, 2] if labels else None
        )


def test_a_real_pil_image():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    data = as_data(Items([image.fromarray(a) for a in RGB]))
    np.testing.assert_array_equal(data[4][0].numpy(), RGB[4].transpose(2, 0, 1))
    bits = as_data(Items([image.fromarray(a).convert("1") for a in GREY]))
    assert bits.dtype == torch.bool
    palette = as_data(Items([image.fromarray(RGB[0]).convert("P")]))
    assert palette.shape == (3, 8, 7)


def test_tensor_dataset_and_labels_of_several_kinds():
    images = torch.from_numpy(GREY)
    data = as_data(TensorDataset(images, torch.arange(6)))
    assert data[5][1] == 5 and data.labelled
    assert as_data(Items([(GREY[0], np.int64(4))]))[0][1] == 4
    assert not as_data(Items([(GREY[0], None)])).labelled


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((GREY[0], "shirt"), "label of item 0 is 'shirt'.*labels=False"),
        ((GREY[0], 3.5), "label of item 0 is '3.5'"),
        ((GREY[0], torch.zeros(3)), "label of item 0"),
        ((GREY[0], 1, "more"), "3 parts"),
        ({"image": GREY[0], "mask": GREY[1]}, "a mask, which can't be used"),
    ],
)
def test_unusable_parts_of_an_item_are_refused(item, words):
    with pytest.raises(TypeError, match=words):
        as_data(Items([item] * 3))
    if len(item) == 2 and isinstance(item, tuple):
        assert not as_data(Items([item] * 3), labels=False).labelled


def test_a_slice_of_a_dataset():
    data = as_data(Items([(a, i) for i, a in enumerate(GREY)])).slice(2, 5)
    assert len(data) == 3 and [data[i][1] for i in range(3)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (Items([]), ValueError, ["nothing in it", "Items"]),
        (Items([{"image": 1}]), TypeError, ["item 0", "int", "PIL image"]),
        (Items([{"img": GREY[0], "label": 1}]), TypeError, ["keys img, label", "image must be"]),
        (Items([()]), TypeError, ["empty tuple"]),
        (Items([np.zeros((4, 4), np.int32)]), TypeError, ["item 0", "uint8", "int32"]),
        (Items([np.zeros((1, 2, 3, 4), np.uint8)]), ValueError, ["item 0", "(1, 2, 3, 4)"]),
        (Items([torch.full((1, 4, 4), -1.0)]), ValueError, ["item 0", "[-1, -1]"]),
        (Items([torch.full((1, 4, 4), float("nan"))]), ValueError, ["item 0", "NaN"]),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(source, error, words):
    with pytest.raises(error) as caught:
        as_data(source)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ((GREY[0][:5], 0), ["item 2 is", "(1, 5, 7)", "item 0", "(1, 8, 7)", "resize"]),
        ((GREY[0] / 255, 0), ["item 2 is torch.float64", "item 0 torch.uint8"]),
        ((GREY[0], "x"), ["label of item 2", "'x'"]),
    ],
)
def test_an_item_unlike_the_first_is_named(odd, words):
    data = as_data(Items([(GREY[0], 0), (GREY[1], 1), odd]))
    with pytest.raises(ValueError) as caught:
        list(Batches(data, 3, shuffle=False))
    for word in ["Items", *words]:
        assert word in str(caught.value)
