"""Augmentation: what the config names, on whole batches, the same for the same seed."""

import sys

import pytest
import torch
from torch import nn

from vae_fast.data import Batches, build_augment

IMAGES = torch.randint(256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(
    torch.uint8
)


class Roll(nn.Module):
    """Rolls a batch by a random number of columns: torchvision's form, without torchvision."""

    def __init__(self, most=8):
        super().__init__()
        self.most = most

    def forward(self, images):
        return images.roll(int(torch.randint(self.most, ())), -1)


class Halve(nn.Module):
    def forward(self, images):
        return images[..., ::2]


class Floats(nn.Module):
    def forward(self, images):
        return images.double() / 255


def named(cls, **args):
    sys.modules["augmentations_of_the_test"] = sys.modules[__name__]
    return {"name": f"augmentations_of_the_test:{cls.__name__}", "args": args}


def passes(count=2, **options):
    batches = Batches(IMAGES, 5, shuffle=False, seed=3, **options)
    return [[images for images, _ in batches] for _ in range(count)]


def test_the_same_draws_for_seed_epoch_batch_and_rank_alone():
    augment = build_augment([named(Roll)])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = passes(augment=augment)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for want, got in zip(whole, passes(augment=augment), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    shifts = [
        next(s for s in range(8) if torch.equal(batch, plain.roll(s, -1)))
        for epoch in whole
        for batch, plain in zip(epoch, IMAGES.split(5), strict=True)
    ]
    assert len(set(shifts)) > 2 and shifts[:5] != shifts[5:]  # draws of their own
    resumed = Batches(IMAGES, 5, shuffle=False, seed=3, augment=augment)
    resumed.load_state_dict({**resumed.state_dict(), "epoch": 1, "batch": 3})
    for want, (got, _) in zip(whole[1][3:], resumed, strict=True):
        assert got.dtype == torch.uint8 and torch.equal(want, got)


def test_one_after_another_and_before_binarising():
    assert build_augment([]) is None
    augment = build_augment([named(Roll, most=1), named(Floats)])
    (epoch,) = passes(1, augment=augment)
    assert epoch[0].dtype == torch.float32
    assert torch.equal(epoch[0], (IMAGES[:5].double() / 255).float())
    rolled, plain = (
        passes(1, augment=a, binarize=True)[0] for a in (build_augment([named(Roll)]), None)
    )
    assert rolled[0].dtype == torch.bool
    assert any(not torch.equal(a, b) for a, b in zip(rolled, plain, strict=True))
    assert all((a <= (b > 0)).all() for a, b in zip(plain, IMAGES.split(5), strict=True))
    with pytest.raises(ValueError, match="augment makes torch.float64.*uint8"):
        passes(1, augment=augment, binarize=True)


def test_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"\(5, 3, 8, 4\) of a batch \(5, 3, 8, 8\).*crop or resize"
    ):
        passes(1, augment=build_augment([named(Halve)]))
    with pytest.raises(ValueError, match="takes images"):
        list(Batches(IMAGES.flatten(1), 5, shuffle=True, augment=build_augment([named(Roll)])))


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        ("RandomCrop", TypeError, "augment must be a list"),
        (["RandomCrop"], ValueError, "each entry of augment is {name: .*RandomCrop"),
        ([{"args": {}}], ValueError, "each entry of augment"),
        ([{"name": "x:Y", "p": 1}], ValueError, "each entry of augment"),
        ([{"name": "x:Y", "args": [1]}], TypeError, "args of augment's x:Y"),
        ([{"name": "no_such_package:Y"}], ModuleNotFoundError, "pip install no_such_package"),
        ([{"name": "math:Crop"}], ValueError, "math has no 'Crop'"),
    ],
)
def test_bad_entries_are_named(entries, error, words):
    with pytest.raises(error, match=words):
        build_augment(entries)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="Roll does not take {'size': 3}"):
        build_augment([named(Roll, size=3)])


def test_without_torchvision(no_torchvision):
    message = (
        "augment's RandomCrop needs torchvision, which is not installed: pip install torchvision"
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        build_augment([{"name": "RandomCrop", "args": {"size": 8, "padding": 1}}])


def test_torchvisions_own():
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    entries = [
        {"name": "RandomHorizontalFlip", "args": {"p": 0.5}},
        {"name": "RandomCrop", "args": {"size": 8, "padding": 2}},
    ]
    augment = build_augment(entries)
    first, again = passes(augment=augment), passes(augment=augment)
    found = [batch for epoch in first for batch in epoch]
    for a, b in zip(found, [batch for epoch in again for batch in epoch], strict=True):
        assert a.dtype == torch.uint8 and torch.equal(a, b)
    flat = IMAGES.flatten().tolist()
    assert any(not torch.equal(a, b) for a, b in zip(first[0], IMAGES.split(5), strict=True))
    assert all(set(batch.flatten().tolist()) <= {0, *flat} for batch in found)
    with pytest.raises(ValueError, match="has no 'RandomCorp'"):
        build_augment([{"name": "RandomCorp"}])
    with pytest.raises(ValueError, match="RandomCrop does not take"):
        build_augment([{"name": "RandomCrop", "args": {"padding": 2}}])
