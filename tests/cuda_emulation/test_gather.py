"""Gathering rows on the host: the reference's bits from every alignment, and no read outside the data."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import Emulator
from vae_fast import reference

KEY = torch.tensor([7, -9])
MODES = ("bytes", "scale", "binarize")


def data_of(samples: int, columns: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    data = torch.randint(256, (samples, columns), generator=generator, dtype=torch.uint8)
    return data if dtype == torch.uint8 else data > 100


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "columns", [1, 3, 4, 15, 16, 17, 30, 64, 784, 1031, 3072, pytest.param(20_000, id="parts")]
)
def test_the_references_bits(emulation: Emulator, mode: str, columns: int):
    data, index = data_of(6, columns), torch.tensor([5, 0, 2, 2, 4])
    for order, offset, first_row in ((0, 0, 0), (1, 1, 1), (2, 16, 5), (3, 3, 2**33)):
        emulation.begin(order, offset)
        found = ops.gather(emulation, data, index, mode, KEY, first_row)
        right = reference.gather_batch(data, index, mode, KEY, first_row)
        assert found.dtype == right.dtype and torch.equal(found, right)


@pytest.mark.parametrize("rows", [1, 33, 300])
def test_many_rows(emulation: Emulator, rows: int):
    data, index = data_of(11, 48), torch.arange(rows) * 7 % 11
    for mode in MODES:
        emulation.begin(2)
        found = ops.gather(emulation, data, index, mode, KEY)
        assert torch.equal(found, reference.gather_batch(data, index, mode, KEY))


def test_the_first_row_is_read_on_the_device(emulation: Emulator):
    data, index = data_of(5, 37), torch.tensor([4, 1, 0])
    emulation.begin()
    place = torch.tensor([9])
    found = ops.gather(emulation, data, index, "binarize", KEY, 2, place)
    assert torch.equal(found, reference.gather_batch(data, index, "binarize", KEY, 11))


def test_bools(emulation: Emulator):
    data, index = data_of(5, 37, torch.bool), torch.tensor([4, 1, 0])
    for mode in ("bytes", "scale"):
        emulation.begin()
        found = ops.gather(emulation, data, index, mode)
        assert torch.equal(found, reference.gather_batch(data, index, mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [-1, 5, 2**62])
def test_an_index_outside_the_data_traps_before_it_is_read(emulation: Emulator, mode, bad):
    for columns in (16, 37):
        emulation.begin()
        with pytest.raises(AssertionError, match=r"^trap"):
            ops.gather(emulation, data_of(5, columns), torch.tensor([1, bad]), mode, KEY)


def test_nothing_to_gather(emulation: Emulator):
    none = torch.empty(0, dtype=torch.int64)
    for data, index in ((data_of(5, 37), none), (torch.empty(5, 0, dtype=torch.uint8), none[:0])):
        emulation.begin()
        assert ops.gather(emulation, data, index, "bytes").shape == (0, data.shape[1])
        assert emulation.launches == 0
