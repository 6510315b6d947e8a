"""GroupNorm and SiLU on the host: float64's values from every alignment and order, both layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import Emulator, accumulator

# rows, channels, groups, places: odd ones; channels beyond a warp's; maps of several parts; rows of whole
# 16 bytes in either layout, and channels that no block's width divides.
SHAPES = ((1, 1, 1, 1), (2, 6, 3, 5), (3, 35, 7, 9), (2, 64, 8, 49), (1, 2, 1, 2500), (2, 4, 4, 0))
SHAPES += ((1, 8, 2, 2512), (1, 264, 8, 6))


def truth(x, groups, weight, bias, grad, eps):
    """The truth by distances from the mean. (torch's float64 loses digits of a mean far from 0.)"""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    grouped = leaves[0].reshape(len(x), groups, x[0].numel() // groups)
    count = max(1, grouped.shape[2])
    distance = grouped - grouped.sum(2, keepdim=True) / count
    variance = distance.square().sum(2, keepdim=True) / count
    xhat = (distance / torch.sqrt(variance + eps)).view(x.shape)
    y = F.silu(xhat * leaves[1][:, None] + leaves[2][:, None])
    return y.detach(), torch.autograd.grad(y, leaves, grad.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_values_and_gradients(emulation: Emulator, dtype: torch.dtype, last: bool):
    for count, (rows, channels, groups, places) in enumerate(SHAPES):
        g = torch.Generator().manual_seed(count)
        x, grad = (torch.randn(rows, channels, places, generator=g) for _ in range(2))
        x = (3 * x + 40).to(dtype)  # far from 0: the variance must not cancel
        grad = grad.to(dtype)
        sums = accumulator(dtype)
        weight, bias = (torch.randn(channels, generator=g).to(sums) for _ in range(2))
        want, want_grads = truth(x, groups, weight, bias, grad, 1e-5)
        there = [t.transpose(1, 2).contiguous() if last else t for t in (x, grad)]
        for order, offset in ((0, 0), (1, 1), (2, 3)):
            emulation.begin(order, offset)
            y, mean, rstd = ops.group_norm(emulation, there[0], groups, weight, bias, 1e-5, last)
            y = y.transpose(1, 2) if last else y
            ops.accuracy(y, want, scale=64.0)
            emulation.begin(order, offset)
            grads = ops.group_norm_backward(
                emulation, there[1], there[0], weight, bias, mean.clone(), rstd.clone(), last
            )
            grads[0] = grads[0].transpose(1, 2) if last else grads[0]
            for found, right in zip(grads, want_grads, strict=True):
                size = float(right.abs().max()) if right.numel() else 1.0
                ops.accuracy(found, right, scale=64.0 * max(1.0, size))
            if order == 0:
                first = [t.clone() for t in (y, mean, rstd, *grads)]
            for t, same in zip((y, mean, rstd, *grads), first, strict=True):
                assert torch.equal(t, same)


def test_without_weight_and_bias(emulation: Emulator):
    x = torch.randn(2, 6, 10)
    emulation.begin()
    y, mean, rstd = ops.group_norm(emulation, x, 2, None, None, 1e-5, False)
    ops.accuracy(y, F.silu(F.group_norm(x.double(), 2)))
    emulation.begin()
    grad, *_ = ops.group_norm_backward(emulation, x, x, None, None, mean, rstd, False)
    assert grad.isfinite().all()


def test_no_samples(emulation: Emulator):
    """Gradients of weight and bias are 0, not whatever lay in memory."""
    x, one = torch.zeros(0, 6, 10), torch.ones(6)
    emulation.begin()
    y, mean, rstd = ops.group_norm(emulation, x, 2, one, one, 1e-5, False)
    assert y.shape == x.shape and emulation.launches == 0
    emulation.begin()
    _, *grads = ops.group_norm_backward(emulation, x, x, one, one, mean, rstd, False)
    assert all(torch.equal(g, torch.zeros(6)) for g in grads)
