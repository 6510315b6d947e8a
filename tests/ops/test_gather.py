"""Gathering rows: the rows that were asked for, x / 255 to the bit, and Bernoulli(x / 255) everywhere alike."""

import math

import pytest
import torch

from vae_fast import gather_batch, noise, reference
from vae_fast.backend import set_backend

KEY = torch.tensor([1234567890123456789, -987654321])
ALL_BYTES = torch.arange(256, dtype=torch.uint8)
# Numbers of columns: divisible by 4, 16 and 64 or not, and around 1024, the size of a chunk.
COLUMNS = (1, 3, 4, 16, 37, 64, 130, 784, 1023, 1024, 1025, 2051)


def data_of(samples: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randint(256, (samples, columns), generator=generator, dtype=torch.uint8)


def textbook(data, index, key, first_row=0):
    """pixel c of row r is set if word (first_row + r) * columns + c is below x * 2^32 / 255."""
    columns = data[0].numel()
    words = reference.random_words(key, (first_row + len(index)) * columns)
    words = words[first_row * columns :].reshape(len(index), *data.shape[1:])
    return words.double() * 255 < data[index].double() * 2.0**32  # exact: below 2^40


def test_rows_as_they_are_and_scaled(implementation):
    for columns in COLUMNS:
        data, index = data_of(9, columns), torch.tensor([8, 0, 3, 3, 7])
        there = data.to(implementation), index.to(implementation)
        assert torch.equal(gather_batch(*there).cpu(), data[index])
        scaled = gather_batch(*there, mode="scale")
        assert scaled.dtype == torch.float32 and scaled.is_contiguous()
        assert torch.equal(scaled.cpu(), data[index].float() / 255)


def test_every_byte_is_scaled_to_the_nearest_float(implementation):
    scaled = gather_batch(
        ALL_BYTES[None].to(implementation),
        torch.zeros(3, dtype=torch.int64, device=implementation),
        mode="scale",
    )
    right = (ALL_BYTES.double() / 255).float()
    assert torch.equal(scaled.cpu(), right.expand(3, 256))


@pytest.mark.parametrize("first_row", [0, 1, 5, 2**33])
def test_binarised_by_the_keys_words(implementation, first_row):
    for columns in COLUMNS:
        binarised_by_the_keys_words(implementation, columns, first_row)


def binarised_by_the_keys_words(implementation, columns, first_row):
    data, index = data_of(9, columns), torch.tensor([8, 0, 3, 3, 7])
    there, key = (data.to(implementation), index.to(implementation)), KEY.to(implementation)
    drawn = gather_batch(*there, mode="binarize", noise_key=key, first_row=first_row)
    assert drawn.dtype == torch.bool and drawn.shape == (5, columns)
    if first_row < 10:
        assert torch.equal(drawn.cpu(), textbook(data, index, KEY, first_row))
    with set_backend("reference"):
        assert torch.equal(
            drawn.cpu(),
            gather_batch(data, index, mode="binarize", noise_key=KEY, first_row=first_row),
        )
    place = torch.tensor([first_row], device=implementation)
    again = gather_batch(*there, mode="binarize", noise_key=key, first_row=place)
    assert torch.equal(again, drawn)


def test_a_pixel_is_set_as_often_as_it_is_bright(implementation):
    """200,000 draws of each of some values, within 5 standard errors; 0 never, 255 always."""
    values = torch.tensor([0, 1, 2, 77, 128, 200, 254, 255], dtype=torch.uint8)
    data = values[:, None].expand(8, 200_000).contiguous().to(implementation)
    index = torch.arange(8, device=implementation)
    drawn = gather_batch(data, index, mode="binarize", noise_key=KEY.to(implementation))
    share, p = drawn.double().mean(1).cpu(), values.double() / 255
    assert share[0] == 0 and share[-1] == 1
    assert ((share - p).abs() <= 5 * (p * (1 - p) / 200_000).sqrt()).all()


def test_how_an_epoch_is_cut_does_not_change_the_draws(implementation):
    data, order = data_of(23, 37), torch.randperm(23)
    data, order, key = (t.to(implementation) for t in (data, order, KEY))
    whole = gather_batch(data, order, mode="binarize", noise_key=key)
    for size in (1, 4, 7):
        parts = [
            gather_batch(data, part, mode="binarize", noise_key=key, first_row=start)
            for start, part in zip(range(0, 23, size), order.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_threads_and_places_in_memory_do_not_change_a_bit(cpu_level, threads):
    data, index = data_of(300, 785), torch.randint(300, (257,))
    threads(1)
    wanted = [gather_batch(data, index, mode=m, noise_key=KEY) for m in ("scale", "binarize")]
    for count in (2, 3, 5):
        threads(count)
        for offset in (0, 1, 3):
            elsewhere = torch.empty(data.numel() + offset, dtype=torch.uint8)[offset:].view_as(data)
            elsewhere.copy_(data)
            for mode, want in zip(("scale", "binarize"), wanted, strict=True):
                assert torch.equal(gather_batch(elsewhere, index, mode=mode, noise_key=KEY), want)


def test_images_bools_and_views(implementation):
    images = data_of(7, 2 * 5 * 6).view(7, 2, 5, 6).to(implementation)
    index = torch.tensor([[6, 1], [0, 1], [2, 1]], device=implementation)[:, 0]  # strided
    key = KEY.to(implementation)
    assert torch.equal(gather_batch(images, index), images[index])
    drawn = gather_batch(images, index, mode="binarize", noise_key=key)
    assert drawn.shape == (3, 2, 5, 6)
    assert torch.equal(drawn.cpu(), textbook(images.cpu(), index.cpu(), KEY))
    for view in (images.transpose(2, 3), images[:, :, ::2], images[::2].expand(4, 2, 5, 6)[:, :1]):
        some = index % len(view)
        assert torch.equal(gather_batch(view, some), view[some])
        scaled = (view[some].double() / 255).float()  # torch's float32 on a GPU is a bit off
        assert torch.equal(gather_batch(view, some, mode="scale"), scaled)
    bools = images > 100
    assert torch.equal(gather_batch(bools, index), bools[index])
    assert torch.equal(gather_batch(bools, index, mode="scale"), bools[index].float())
    assert torch.equal(gather_batch(bools, index, mode="binarize"), bools[index])


def test_an_empty_batch_and_samples_without_features(implementation):
    data = data_of(4, 6).to(implementation)
    none = torch.empty(0, dtype=torch.int64, device=implementation)
    for mode, dtype in (("bytes", torch.uint8), ("scale", torch.float32), ("binarize", torch.bool)):
        assert gather_batch(data, none, mode=mode).shape == (0, 6)
        flat = gather_batch(data[:, 0].contiguous(), none.new_tensor([3, 1]), mode=mode)
        assert flat.shape == (2,) and flat.dtype == dtype
        empty = gather_batch(data[:, :0], none.new_tensor([3, 1]), mode=mode)
        assert empty.shape == (2, 0) and empty.dtype == dtype


def test_without_a_key_torchs_seed_decides(backend):
    data, index = data_of(4, 300), torch.arange(4)
    torch.manual_seed(5)
    first, second = (gather_batch(data, index, mode="binarize") for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(gather_batch(data, index, mode="binarize"), first)
    assert 0.1 < (first != second).double().mean() < 0.9


@pytest.mark.parametrize("bad", [-1, 9, 2**62, -(2**63)])
@pytest.mark.parametrize("mode", ["bytes", "scale", "binarize"])
def test_an_index_outside_the_data_is_named(backend, bad, mode):
    data = data_of(9, 784)
    with pytest.raises(IndexError, match=rf"index {bad}, at position 2 of 4.*samples 0 to 8"):
        gather_batch(data, torch.tensor([0, 8, bad, 99]), mode=mode)


def test_bare_op_reads_nothing_out_of_bounds(native):
    op = torch.ops.vae_fast.gather_batch
    data, index = data_of(9, 7), torch.tensor([1, 2])
    bad = [
        lambda: op(data, torch.tensor([9]), 0, None, 0, None),
        lambda: op(data, torch.tensor([-1]), 2, KEY, 0, None),
        lambda: op(data, index.int(), 0, None, 0, None),
        lambda: op(data, index[None], 0, None, 0, None),
        lambda: op(data.float(), index, 0, None, 0, None),
        lambda: op(data.t(), index, 0, None, 0, None),
        lambda: op(data, index, 3, None, 0, None),
        lambda: op(data, index, 2, None, 0, None),
        lambda: op(data, index, 2, KEY[:1], 0, None),
        lambda: op(data > 3, index, 2, KEY, 0, None),
        lambda: op(data, index, 2, KEY, 0, torch.tensor([1, 2])),
        lambda: op(data, index, 2, KEY, 0, torch.tensor([1.0])),
    ]
    for call in bad:
        with pytest.raises(RuntimeError, match="vae_fast"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mode": "binarise"}, ValueError, "mode must be one of 'bytes', 'scale', 'binarize'"),
        ({"data": torch.zeros(3, 4)}, TypeError, "uint8.*or bool tensor, got torch.float32"),
        ({"data": [1, 2]}, TypeError, "uint8.*or bool tensor, got list"),
        ({"index": torch.tensor([1.0])}, TypeError, "int64 tensor .B,., got torch.float32"),
        ({"index": [1]}, TypeError, "int64 tensor .B,., got list"),
        ({"index": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, "cpu.*meta"),
        (
            {"mode": "binarize", "noise_key": torch.zeros(2, dtype=torch.int64, device="meta")},
            ValueError,
            "noise_key is on meta, data on cpu",
        ),
    ],
)
def test_bad_arguments_are_named(backend, arguments, error, words):
    good = {"data": data_of(3, 4), "index": torch.tensor([1])}
    with pytest.raises(error, match=words):
        gather_batch(**{**good, **arguments})


def test_compiled_in_one_graph(backend):
    torch.compiler.reset()
    data = data_of(9, 37)

    def function(index, key):
        return [
            gather_batch(data, index, mode=mode, noise_key=key, first_row=3)
            for mode in ("bytes", "scale", "binarize")
        ]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for index in (torch.tensor([8, 0, 3]), torch.tensor([1, 2, 2])):
        for got, want in zip(compiled(index, KEY), function(index, KEY), strict=True):
            assert torch.equal(got, want)
    torch.compiler.reset()


def test_different_keys_are_unrelated(cpu_level):
    """Grey images under neighbouring keys and streams: as many agreements as chance gives."""
    data, index = torch.full((64, 784), 128, dtype=torch.uint8), torch.arange(64)
    keys = [torch.tensor(k) for k in ((1, 2), (1, 3), (2, 2), (2, 1), (1 + 2**32, 2))]
    drawn = [gather_batch(data, index, mode="binarize", noise_key=k).double() for k in keys]
    drawn.append(gather_batch(data, index, mode="binarize", noise_key=noise.new_key()).double())
    p, n = 128 / 255, data.numel()
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            correlation = ((a - p) * (b - p)).mean() / (p * (1 - p)) * math.sqrt(n)
            assert abs(correlation) < 5
