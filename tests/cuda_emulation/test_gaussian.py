"""The Gaussian family's CUDA kernels, on the host, against float64 PyTorch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import REDUCTIONS, Emulator
from tests.cuda_emulation.ops import Up, accuracy
from vae_fast import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 5), (3, 5), (128, 20), (41, 401), (2, 9001), (1, 9001)]
KEY = torch.tensor([5, -6])


def inputs(shape: tuple[int, int], dtype: torch.dtype, count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(emulation: Emulator, shape, dtype: torch.dtype):
    mu, logvar, *prior = inputs(shape, dtype)
    expected_z = reference.reparameterize(mu.double(), logvar.double(), 1, KEY)
    for given, reduction in itertools.product((None, tuple(prior)), REDUCTIONS):
        expected = reference.gaussian_kl(
            *(t.double() for t in (mu, logvar, *(given or ()))), reduction=reduction
        )
        emulation.begin(order=2, offset=shape[1] % 3)
        z, kl = ops.gaussian_forward(emulation, mu, logvar, given, KEY, reduction=reduction)
        accuracy(kl, expected)
        accuracy(z, expected_z)
        emulation.begin(order=1)
        _, alone = ops.gaussian_forward(emulation, mu, logvar, given, reduction=reduction)
        assert torch.equal(alone, kl), "the KL must not depend on sampling, order or alignment"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("samples", [None, 1, 3])
def test_backward(emulation: Emulator, shape, dtype: torch.dtype, samples: int | None):
    mu, logvar, *prior = inputs(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    grad_z = None
    if samples is not None:
        grad_z = torch.randn((samples, *shape), generator=generator).to(dtype)
    per_row = torch.randn(shape[0], generator=generator).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    ups = [
        Up(part=per_row, per_row=True),
        Up(part=per_row[:1], scale=1 / shape[0]),
        *([] if samples is None else [None]),
    ]
    for given in (None, tuple(prior)):
        for up in ups:
            leaves = wide(mu, logvar, *(given or ()))
            total = 0.0 * sum(t.sum() for t in leaves)
            if up is not None:
                kl = reference.gaussian_kl(*leaves, reduction="none")
                total = total + (kl * up.factor(shape[0])[:, 0]).sum()
            if grad_z is not None:
                z = reference.reparameterize(*leaves[:2], samples, KEY)
                total = total + (z * grad_z.double()).sum()
            expected = torch.autograd.grad(total, leaves)
            emulation.begin(order=2, offset=shape[1] % 3)
            found = ops.gaussian_backward(emulation, mu, logvar, given, KEY, grad_z, up)
            for f, e in zip(found, expected, strict=True):
                accuracy(f, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 6), (5, 4), (37, 61)], ids=str)
def test_many_samples(emulation: Emulator, shape, dtype: torch.dtype):
    mu, logvar = inputs(shape, dtype, 2)
    expected = reference.reparameterize(mu.double(), logvar.double(), 5, KEY)
    for offset in (0, 1):
        emulation.begin(offset=offset)
        z, _ = ops.gaussian_forward(emulation, mu, logvar, key=KEY, num_samples=5, kl=False)
        accuracy(z, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 0)], ids=str)
def test_empty(emulation: Emulator, shape, reduction: str):
    empty = torch.empty(shape)
    emulation.begin()
    z, kl = ops.gaussian_forward(emulation, empty, empty, key=KEY, reduction=reduction)
    expected = reference.gaussian_kl(empty, empty, reduction=reduction)
    assert kl.shape == expected.shape and z.numel() == 0
    torch.testing.assert_close(kl, expected, equal_nan=True)
    emulation.begin()
    ops.gaussian_backward(emulation, empty, empty, key=KEY, grad_z=empty[None], up=Up())


def test_extreme_values_stay_what_they_are(emulation: Emulator):
    mu = torch.tensor([[0.0, 1e20, math.inf, math.nan, 0.0, 0.0, 0.0, 1.0]])
    logvar = torch.tensor([[0.0, 0.0, 0.0, 0.0, 100.0, -100.0, math.nan, -math.inf]])
    for column in range(mu.shape[1]):
        m, v = mu[:, column : column + 1], logvar[:, column : column + 1]
        emulation.begin()
        z, kl = ops.gaussian_forward(emulation, m, v, key=KEY)
        torch.testing.assert_close(kl, reference.gaussian_kl(m, v), equal_nan=True)
        expected = reference.reparameterize(m, v, 1, KEY)
        torch.testing.assert_close(z, expected, equal_nan=True)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_same_bits_in_any_order_and_at_any_alignment(emulation: Emulator, reduction: str):
    mu, logvar = inputs((41, 401), torch.float32, 2)
    results = set()
    for order, offset in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]:
        emulation.begin(order, offset)
        z, kl = ops.gaussian_forward(emulation, mu, logvar, key=KEY, reduction=reduction)
        results.add((z.numpy().tobytes(), kl.numpy().tobytes()))
    assert len(results) == 1


def test_a_sum_takes_one_launch(emulation: Emulator):
    for shape, reduction, launches in [
        ((128, 20), "sum", 1),
        ((128, 20), "none", 1),
        ((1024, 64), "sum", 1),
        ((1024, 64), "none", 1),
        ((1, 70_000), "none", 1),
    ]:
        mu, logvar = inputs(shape, torch.float32, 2)
        for order in (0, 1, 5):  # whichever block is the last
            emulation.begin(order)
            _, kl = ops.gaussian_forward(emulation, mu, logvar, key=KEY, reduction=reduction)
            assert emulation.launches == launches, (shape, reduction)
            right = reference.gaussian_kl(mu.double(), logvar.double(), reduction=reduction)
            accuracy(kl, right)
