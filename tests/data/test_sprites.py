"""sprites: geometry against what its factors say, and the factors themselves."""

import math
import zlib

import numpy as np
import pytest
import torch

from vae_fast.data import Batches, as_data, load, sprites
from vae_fast.data.sprites import (
    COUNT,
    FACTOR_NAMES,
    FACTOR_SIZES,
    FACTOR_VALUES,
    Sprites,
    factors_of,
    index_of,
    render,
)

SQUARE, ELLIPSE, HEART = 0, 1, 2


def image(shape, scale=5, orientation=0, x=16, y=16) -> np.ndarray:
    return render(index_of([shape, scale, orientation, x, y]))[0].numpy() > 0


def centroid(picture) -> tuple[float, float]:
    rows, columns = np.nonzero(picture)
    return columns.mean(), rows.mean()


def test_sizes_and_values():
    assert math.prod(FACTOR_SIZES) == COUNT == 737_280
    assert [len(values) for values in FACTOR_VALUES] == list(FACTOR_SIZES)
    assert len(FACTOR_NAMES) == 5
    assert FACTOR_VALUES[0] == ("square", "ellipse", "heart")
    assert FACTOR_VALUES[1] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert FACTOR_VALUES[2][39] == pytest.approx(2 * math.pi * 39 / 40)
    assert FACTOR_VALUES[3][31] == FACTOR_VALUES[4][31] == 1.0


def test_factors_round_trip_for_every_image():
    index = torch.arange(COUNT)
    factors = factors_of(index)
    assert torch.equal(index_of(factors), index)
    assert factors.min(0).values.tolist() == [0] * 5
    assert (factors.max(0).values + 1).tolist() == list(FACTOR_SIZES)
    assert factors_of(1).tolist() == [0, 0, 0, 0, 1]  # y runs fastest, shape slowest
    assert factors_of(COUNT - 1).tolist() == [2, 5, 39, 31, 31]
    assert factors_of(np.arange(6).reshape(2, 3)).shape == (2, 3, 5)


def test_images_are_black_and_white_and_whole():
    some = render(torch.arange(0, COUNT, 997))
    assert some.shape == (740, 1, 64, 64) and some.dtype == torch.uint8
    assert some.unique().tolist() == [0, 255]
    # The area does not depend on the place: nothing is ever cut off at an edge.
    for shape in range(3):
        for orientation in range(40):
            corners = [image(shape, 5, orientation, x, y).sum() for x in (0, 31) for y in (0, 31)]
            assert len({*corners, image(shape, 5, orientation).sum()}) == 1


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (SQUARE, (2 * sprites.SQUARE_HALF_SIDE) ** 2),
        (ELLIPSE, math.pi * math.prod(sprites.ELLIPSE_SEMI_AXES)),
        (HEART, 3.66199 * sprites.HEART_UNIT**2),  # the unit heart's area, by quadrature
    ],
)
def test_area_grows_with_the_square_of_the_scale(shape, area):
    for scale in range(6):
        drawn = np.mean([image(shape, scale, o).sum() for o in range(40)])
        assert drawn == pytest.approx(area * FACTOR_VALUES[1][scale] ** 2, rel=0.015)


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_the_centroid_follows_x_and_y(shape):
    for orientation in (0, 7, 33):
        for x, y in [(0, 0), (31, 0), (0, 31), (31, 31), (5, 20)]:
            found = centroid(image(shape, 5, orientation, x, y))
            assert found == pytest.approx((16 + x, 16 + y), abs=0.2)
        # One step is one pixel, exactly.
        here, right, down = (image(shape, 3, orientation, *p) for p in [(8, 9), (9, 9), (8, 10)])
        np.testing.assert_array_equal(np.roll(here, 1, axis=1), right)
        np.testing.assert_array_equal(np.roll(here, 1, axis=0), down)


def test_orientation_has_each_shapes_own_period():
    for shape, period in [(SQUARE, 10), (ELLIPSE, 20), (HEART, 40)]:
        turned = [image(shape, 5, o).tobytes() for o in range(40)]
        for o in range(40):
            same = {p for p in range(40) if turned[p] == turned[o]}
            assert same == set(range(o % period, 40, period))


def test_orientation_turns_counter_clockwise():
    assert image(ELLIPSE)[32, 18:47].all()  # lies along x at 0
    turned = image(ELLIPSE, orientation=5)  # pi/4: from lower left to upper right
    assert turned[32 - 9, 32 + 9] and turned[32 + 9, 32 - 9]
    assert not turned[32 + 9, 32 + 9] and not turned[32 - 9, 32 - 9]
    np.testing.assert_array_equal(image(HEART)[1:, 1:], image(HEART)[1:, :0:-1])  # symmetric
    heart = image(HEART)
    assert heart[:32].any(axis=1).sum() < heart[33:].any(axis=1).sum()  # its tip points down
    for o in (0, 3, 17):  # a quarter turn of the image is ten orientations
        np.testing.assert_array_equal(
            np.rot90(image(HEART, orientation=o)[1:, 1:]), image(HEART, orientation=o + 10)[1:, 1:]
        )


def test_the_images_never_change():
    assert zlib.crc32(sprites._canvases().tobytes()) == 2695189497
    assert zlib.crc32(render(torch.arange(0, COUNT, 1009)).numpy().tobytes()) == 2526314257


def test_any_range_in_any_order_is_the_same_images():
    whole = render(torch.arange(5000, 5100))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(render(5000 + order), whole[order])
    assert torch.equal(render(5007), whole[7])
    assert torch.equal(render([5007, 5001]), whole[[7, 1]])


def test_splits_are_disjoint_and_whole_and_mixed():
    train, val, test, both = (
        load("sprites", split=s) for s in ("train", "val", "test", "train+val")
    )
    assert (len(val), len(test)) == (36_864, 36_864)
    rows = torch.cat([train.rows, val.rows, test.rows])
    assert torch.equal(rows.sort().values, torch.arange(COUNT))
    assert torch.equal(torch.cat([train.rows, val.rows]).sort().values, both.rows)
    factors = val.factors(torch.arange(len(val)))
    for i, size in enumerate(FACTOR_SIZES):  # every value of every factor, about equally often
        counts = factors[:, i].bincount(minlength=size)
        assert (counts - len(val) / size).abs().max() < 6 * math.sqrt(len(val) / size)


def test_as_a_source():
    data = as_data("sprites")
    batch = next(iter(Batches(data, 64, shuffle=True, seed=3)))
    assert batch.images.shape == (64, 1, 64, 64) and batch.images.dtype == torch.uint8
    assert set(batch.labels.tolist()) == {0, 1, 2}
    part = Sprites().slice(1000, 1010)
    images, labels = part.gather(torch.tensor([3, 4]))
    assert torch.equal(images, render([1003, 1004])) and labels.tolist() == [0, 0]
    assert torch.equal(part[9][0], render(1009)) and len(part) == 10
    assert part.factors(torch.tensor([0])).tolist() == factors_of([1000]).tolist()
    with pytest.raises(IndexError, match="no sample 10: they go from 0 to 9"):
        part[10]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: render(COUNT), IndexError, "image 737280 does not exist.*737279"),
        (lambda: render([0, -1]), IndexError, "image -1"),
        (lambda: render(torch.tensor([0.5])), TypeError, "must be integers.*float32"),
        (lambda: index_of([0, 6, 0, 0, 0]), IndexError, "scale 6 .* from 0 to 5"),
        (lambda: index_of([0, 0, 0, 0]), ValueError, r"\(\.\.\., 5\).*shape, scale.*\(4,\)"),
    ],
)
def test_missing_images_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
