"""The noise of the CUDA kernels, on the host."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import Emulator
from vae_fast import reference

KEYS = [(0, 0), (1, 2), (-1, -1), (-123456789012345, 987654321987654321), (2**63 - 1, -(2**63))]


@pytest.mark.parametrize("key", KEYS)
def test_words_are_the_references_bit_for_bit(emulation: Emulator, key):
    key = torch.tensor(key)
    for counters in (1, 3, 256, 1021):
        found = ops.philox_words(emulation, key, 0, counters)
        assert torch.equal(found, reference.random_words(key, 4 * counters))


@pytest.mark.parametrize("first", [2**32 - 2, 2**40 + 5, 2**64 - 5])
def test_counters_carry_into_their_second_word(emulation: Emulator, first: int):
    mask, (philox_key, stream) = 2**32 - 1, KEYS[3]
    found = ops.philox_words(emulation, torch.tensor(KEYS[3]), first, 4)
    counters = [first + i for i in range(4)]
    parts = [[c & mask for c in counters], [c >> 32 & mask for c in counters]]
    parts += [[stream & mask] * 4, [stream >> 32 & mask] * 4]
    words = reference.philox(
        [torch.tensor(part) for part in parts],
        [torch.tensor(philox_key & mask), torch.tensor(philox_key >> 32 & mask)],
    )
    assert torch.equal(found, torch.stack(words, 1).flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_the_references_to_a_few_ulp(emulation: Emulator, dtype: torch.dtype):
    key, zeros = torch.tensor([7, -9]), torch.zeros(100, 401, dtype=dtype)
    emulation.begin()
    eps, _ = ops.gaussian_forward(emulation, zeros, zeros, key=key, kl=False)
    expected = reference.normal(key, (1, 100, 401), torch.float64)
    # Near 0 the radius is that of log(u) near u = 1, where float32's u itself is coarse.
    error = (eps.double() - expected).abs()
    assert error.max() < 8 * torch.finfo(dtype).eps * expected.abs().max()
    assert 0.98 < eps.double().std() < 1.02


@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (1, 1), (9, 13), (2, 6), (5, 4)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_sample_sets_continue_the_noise_where_4_does_not_divide_them(
    emulation: Emulator, rows: int, cols: int, dtype: torch.dtype
):
    key, zeros = torch.tensor([7, -9]), torch.zeros(rows, cols, dtype=dtype)
    emulation.begin()
    z, _ = ops.gaussian_forward(emulation, zeros, zeros, key=key, num_samples=7, kl=False)
    ops.accuracy(z, reference.normal(key, (7, rows, cols), torch.float64))
