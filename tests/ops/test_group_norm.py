"""group_norm_silu, the same without SiLU, and GroupNormSiLU: accuracy, layouts, what is kept, and nn.Sequential's behaviour."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vae_fast
from tests.ops.accuracy import Accuracy, Bar, call, exact
from vae_fast import GroupNormSiLU, group_norm_silu
from vae_fast.backend import library, set_backend
from vae_fast.functional.group_norm import group_norm

# (N, C, ...) and groups: places and channels around vectors and blocks, one place, one group, one
# channel a group, several pieces, more channels than a row of the kernel holds, none at all.
SHAPES = (
    ((2, 2, 1), 1),
    ((2, 6, 5, 1), 3),
    ((3, 12, 7, 7), 4),
    ((2, 33, 9), 11),
    ((2, 32, 17, 16), 32),
    ((4, 8, 31, 33), 1),
    ((1, 4, 130, 129), 2),
    ((2, 3000, 3), 5),
    ((5, 40), 8),
    ((2, 6, 3, 4, 5), 2),
    ((0, 6, 4, 4), 2),
    ((2, 6, 0, 4), 2),
)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def norm(x, groups, weight, bias, eps=1e-5):
    """Plain PyTorch, which takes no empty maps."""
    if x.numel() == 0:
        return x + 0 * (weight.sum() + bias.sum())
    return torch.group_norm(x, groups, weight, bias, eps)


def silu_of_norm(x, groups, weight, bias, eps=1e-5):
    return F.silu(norm(x, groups, weight, bias, eps))


@functools.cache
def bars(shape, groups, dtype, silu):
    """x, weight, bias, the upstream gradient, and the bars of y and three gradients."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    x = 2 * x + 3 * torch.randn(shape[:2], generator=generator)[(...,) + (None,) * (x.dim() - 2)]
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    inputs = [t.to(dtype) for t in (x, weight, bias)]
    grad = grad.to(dtype)
    plain = silu_of_norm if silu else norm
    eager, eager_grads = call(lambda *a: plain(a[0], groups, *a[1:]), inputs, [grad])
    truths, sizes = truth(*map(exact, (*inputs, grad)), groups, silu)
    held = map(Bar, (*eager, *eager_grads), truths, sizes)
    return inputs, grad, list(held)


def truth(x, weight, bias, grad, groups, silu, eps=1e-5):
    """Value and gradients, as textbooks have them, and the sizes of the terms that each is a sum of."""
    shape, n = x.shape, len(x)
    rows = (n, groups, -1) if x.size else (n, groups, x.size)
    by_channel = (1, -1) + (1,) * (x.ndim - 2)
    places = (0, *range(2, x.ndim))
    with np.errstate(all="ignore"):
        grouped, count = x.reshape(rows), x.dtype.type(max(1, x.size // max(1, n * groups)))
        mean = grouped.sum(-1, keepdims=True) / count
        rstd = 1 / np.sqrt(
            ((grouped - mean) ** 2).sum(-1, keepdims=True) / count + x.dtype.type(eps)
        )
        xhat = ((grouped - mean) * rstd).reshape(shape)
        v = xhat * weight.reshape(by_channel) + bias.reshape(by_channel)
        sigmoid = 1 / (1 + np.exp(-v))
        if not silu:
            sigmoid = np.ones_like(v)
        dv = grad * sigmoid * (1 + v * (1 - sigmoid))
        of_xhat = (dv * weight.reshape(by_channel)).reshape(rows)
        flat = xhat.reshape(rows)
        dx = rstd * (
            of_xhat
            - of_xhat.sum(-1, keepdims=True) / count
            - flat * (of_xhat * flat).sum(-1, keepdims=True) / count
        )
        scaled = np.abs(xhat * weight.reshape(by_channel)) + np.abs(bias.reshape(by_channel))
        most = rstd * np.abs(of_xhat).max(-1, keepdims=True, initial=0) * (2 + np.abs(flat))
    truths = v * sigmoid, dx.reshape(shape), (dv * xhat).sum(places), dv.sum(places)
    sums = np.abs(dv * xhat).sum(places), np.abs(dv).sum(places)
    return truths, (scaled * sigmoid, most.reshape(shape), *sums)


@pytest.mark.parametrize("silu", [True, False], ids=["silu", "norm"])
def test_accuracy(implementation, dtype, silu):
    accuracy = Accuracy()
    for shape, groups in SHAPES if silu else SHAPES[1::2]:
        inputs, grad, held = bars(shape, groups, dtype, silu)
        there = [t.to(implementation) for t in inputs]
        for last in (False, True):
            if last and len(shape) not in LAST:
                continue
            x = there[0].contiguous(memory_format=LAST[len(shape)]) if last else there[0]
            (y,), grads = call(
                lambda *a, g=groups: group_norm(a[0], g, *a[1:], silu=silu),
                (x, *there[1:]),
                [grad.to(implementation)],
            )
            assert y.dtype == dtype
            if last and y.numel():
                assert y.is_contiguous(memory_format=LAST[len(shape)])
            if last and vae_fast.get_backend() == "reference":
                continue  # torch's own channels-last kernel is less exact than the other
            names = ("y", "grad x", "grad weight", "grad bias")
            for name, found, bar in zip(names, (y, *grads), held, strict=True):
                accuracy.hold(name, found.cpu(), bar)
    accuracy.check()


def test_a_mean_far_above_the_deviation(cpu_level):
    """Sums of squares would have no digit of the variance left."""
    x = torch.randn(2, 8, 40, 30, dtype=torch.float64)
    x[:, :, 0, 0] += 300  # and the first is an outlier
    for shift in (0.0, 1e4):
        single = (x + shift).float()
        want = silu_of_norm(single.double(), 2, None, None)
        for last in (False, True):
            given = single.contiguous(memory_format=torch.channels_last) if last else single
            found = group_norm_silu(given, 2)
            off = 4 * shift * torch.finfo(torch.float32).eps + 1e-5
            torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=off)


def test_silu_of_any_number(implementation):
    """The tails, where exponentials over- and underflow; NaN and infinity come through."""
    magnitudes = (0.0, 1e-30, 1e-3, 1.278, 20.0, 60.0, 86.0, 87.5, 88.2, 95.0, 130.0, 1e4, 1e38)
    v = torch.tensor([*magnitudes, *(-m for m in magnitudes), float("inf"), float("nan")])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        eps = torch.finfo(dtype).eps
        for shape in ((2, len(v), 40), (2, len(v), 1, 40)):
            x = torch.randn(shape).to(implementation, dtype)
            if len(shape) == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            bias = v.to(implementation).requires_grad_()
            y = group_norm_silu(x, len(v), torch.zeros_like(bias), bias)
            (grad,) = torch.autograd.grad(y.float().sum(), bias)
            exact_v = v.double().requires_grad_()
            want = F.silu(exact_v)
            (slope,) = torch.autograd.grad(want.sum(), exact_v)
            want = want.to(dtype).double()  # overflows where it must
            found = y.cpu().double().movedim(1, -1).reshape(-1, len(v))
            torch.testing.assert_close(
                found, want.expand_as(found), rtol=2 * eps, atol=1e-36, equal_nan=True
            )
            torch.testing.assert_close(
                grad.cpu().double()[:-2] / 80, slope[:-2], rtol=max(eps, 1e-5), atol=eps / 4
            )


def test_a_group_of_one_element(implementation):
    x, bias = torch.randn(2, 3, 1, device=implementation), torch.randn(3, device=implementation)
    (y,), grads = call(lambda x, b: group_norm_silu(x, 3, None, b), (x, bias))
    torch.testing.assert_close(y, F.silu(bias)[:, None].expand(2, 3, 1))
    torch.testing.assert_close(grads[0], torch.zeros_like(x), rtol=0, atol=1e-4)


def test_other_layouts_and_dtypes(implementation):
    """Sliced, transposed and expanded inputs and upstream gradients; float32 weights beside others."""
    base = torch.randn(3, 8, 6, 5).to(implementation)
    weight, bias = (torch.randn(8, device=implementation) for _ in range(2))
    views = {
        "sliced": torch.randn(3, 8, 6, 10).to(implementation)[..., ::2],
        "transposed": base.transpose(2, 3),
        "expanded": base[:, :1].expand(3, 8, 6, 5),
        "offset": torch.randn(721).to(implementation)[1:].view(3, 8, 6, 5),
        "half a batch": base[1:],
        "channels": torch.randn(3, 16, 6, 5).to(implementation)[:, 4:12],
    }
    for view in views.values():
        for upstream in (base.transpose(2, 3), base[:, :1].expand(3, 8, 6, 5)):
            up = upstream.expand_as(view) if upstream.shape == view.shape else view.cos()
            up = up[: len(view)]
            found = call(lambda *a: group_norm_silu(a[0], 4, *a[1:]), (view, weight, bias), [up])
            want = call(lambda *a: silu_of_norm(a[0], 4, *a[1:]), (view, weight, bias), [up])
            for f, w in zip((*found[0], *found[1]), (*want[0], *want[1]), strict=True):
                torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-4)
    half = base.bfloat16()
    (y,), grads = call(lambda *a: group_norm_silu(a[0], 4, *a[1:]), (half, weight, bias))
    assert y.dtype == half.dtype and [g.dtype for g in grads] == [half.dtype] + 2 * [torch.float32]
    want = silu_of_norm(half.float(), 4, weight, bias)
    torch.testing.assert_close(y.float(), want, rtol=2e-2, atol=2e-2)


def test_nan_and_infinity_reach_the_result(implementation):
    for value in (float("nan"), float("inf")):
        for last in (False, True):
            x = torch.randn(2, 6, 9, 7)
            x[0, 1, 3, 3] = value
            if last:
                x = x.contiguous(memory_format=torch.channels_last)
            x = x.to(implementation).requires_grad_()
            y = group_norm_silu(x, 3)
            assert y[0, :2].isnan().all() and y[0, 2:].isfinite().all() and y[1].isfinite().all()
            (grad,) = torch.autograd.grad(y[0, 2:].sum() + y[1].sum(), x)
            assert grad[0, 2:].isfinite().all() and grad[1].isfinite().all()


@pytest.fixture
def pretend_cpus(native):
    yield library().pretend_cpus
    library().pretend_cpus(0)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_threads_change_no_bit(cpu_level, threads, pretend_cpus, last):
    """Samples fewer than the threads, and more; pieces in one turn, and side by side."""
    for shape, groups in (((1, 24, 70, 71), 2), ((5, 20, 40, 41), 4)):
        x, grad = (torch.randn(shape) for _ in range(2))
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        inputs = (x, torch.randn(shape[1]), torch.randn(shape[1]))
        found = []
        for count in (1, 2, 7):
            threads(count)
            pretend_cpus(count)
            (y,), grads = call(
                lambda *a, g=groups: group_norm_silu(a[0], g, *a[1:]), inputs, [grad]
            )
            found.append([y, *grads])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_backward_keeps_the_input_and_the_statistics(native):
    kept = []
    layer = GroupNormSiLU(4, 8)
    x = torch.randn(2, 8, 30, 30, requires_grad=True)

    def keep(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(x)
    places = {t.data_ptr() for t in (x, layer.weight, layer.bias)}
    others = [t for t in kept if t.data_ptr() not in places]
    assert len(kept) == 5 and [tuple(t.shape) for t in others] == [(2, 4), (2, 4)]


def test_the_layer_in_the_place_of_two(implementation):
    for affine in (True, False):
        pair = nn.Sequential(nn.GroupNorm(3, 12, eps=1e-3, affine=affine), nn.SiLU())
        layer = GroupNormSiLU(3, 12, eps=1e-3, affine=affine)
        if affine:
            nn.init.normal_(pair[0].weight)
            nn.init.normal_(pair[0].bias)
        layer.load_state_dict(pair[0].state_dict())
        pair, layer = pair.to(implementation), layer.to(implementation)
        x = torch.randn(4, 12, 5, 5, device=implementation)
        torch.testing.assert_close(layer(x), pair(x), rtol=1e-5, atol=1e-5)
        grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) if affine else ()
                 for m in (layer, pair)]  # fmt: skip
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert repr(layer) == repr(nn.GroupNorm(3, 12, eps=1e-3, affine=False)).replace(
        "Norm", "NormSiLU"
    )


def test_frozen_parts(implementation):
    """Only tensors that require a gradient get one."""
    x, weight, bias = (
        t.to(implementation) for t in (torch.randn(2, 4, 6), torch.randn(4), torch.randn(4))
    )
    wanted = call(lambda *a: silu_of_norm(a[0], 2, *a[1:]), (x, weight, bias))[1]
    for k in range(3):
        leaves = [t.detach().requires_grad_(i == k) for i, t in enumerate((x, weight, bias))]
        group_norm_silu(leaves[0], 2, *leaves[1:]).sum().backward()
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (i != k)
        torch.testing.assert_close(leaves[k].grad, wanted[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda x, w: (x.int(), 2), TypeError, "x must be float32"),
        (lambda x, w: (x[0, :, 0], 2), ValueError, r"\(N, C, \.\.\.\), got shape \(6,\)"),
        (lambda x, w: (x, 4), ValueError, "6 channels and num_groups is 4"),
        (lambda x, w: (x, 0), ValueError, "6 channels and num_groups is 0"),
        (lambda x, w: (x, 2, w[:5]), ValueError, r"weight has shape \(5,\), and x has 6 channels"),
        (lambda x, w: (x, 2, w, w.to("meta")), ValueError, "bias is on meta, x on cpu"),
        (lambda x, w: (x, 2, w.int()), TypeError, "weight must be float32"),
    ],
)
def test_data_that_do_not_fit_are_errors(backend, arguments, error, words):
    with pytest.raises(error, match=words):
        group_norm_silu(*arguments(torch.randn(2, 6, 5), torch.ones(6)))


def test_autocast_leaves_the_dtype(implementation):
    layer = GroupNormSiLU(2, 4).to(implementation)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 4, 5, 5, device=implementation, dtype=dtype)
        with torch.autocast(implementation, torch.bfloat16):
            assert layer(x).dtype == dtype


def test_the_backend_is_respected():
    x = torch.randn(2, 4, 5)
    with set_backend("reference"):
        assert torch.equal(group_norm_silu(x, 2), silu_of_norm(x, 2, None, None))
    assert vae_fast.nn.GroupNormSiLU is GroupNormSiLU
