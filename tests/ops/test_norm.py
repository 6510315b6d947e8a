"""euclidean_norm: its accuracy, its order of summation, and what is not finite."""

import math

import pytest
import torch

SIZES = [0, 1, 15, 16, 17, 1023, 1025, 4096, 4099, 300_001]


@pytest.mark.parametrize("size", SIZES)
def test_accuracy_and_threads(cpu_level, threads, size):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=generator) * torch.rand(size, generator=generator).pow(8)
    right = math.sqrt(math.fsum(v * v for v in x.tolist()))
    found = torch.ops.vae_fast.euclidean_norm(x)
    assert found.shape == () and found.dtype == torch.float32
    assert found.item() == pytest.approx(right, rel=2e-7)
    for count in (2, 3):
        threads(count)
        assert torch.equal(torch.ops.vae_fast.euclidean_norm(x), found)
    for shift in (1, 5):  # begins anywhere in a line
        if size > shift:
            part = torch.ops.vae_fast.euclidean_norm(x[shift:]).item()
            assert part == pytest.approx(x[shift:].double().norm().item(), rel=2e-7)


@pytest.mark.parametrize("place", [0, 1500, 299_999])
def test_nan_and_infinity_reach_the_result(cpu_level, place):
    x = torch.ones(300_000)
    x[place] = float("nan")
    assert torch.ops.vae_fast.euclidean_norm(x).isnan()
    for value in (float("inf"), -float("inf")):
        x[place] = value
        assert torch.ops.vae_fast.euclidean_norm(x).item() == float("inf")
