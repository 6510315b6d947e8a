"""reparameterize, gaussian_kl, sample_and_kl: accuracy, noise, layouts, gradients, extremes."""

import contextlib
import functools
import itertools

import numpy as np
import pytest
import torch

import vae_fast
from tests.conftest import NATIVE
from tests.ops.accuracy import (
    REDUCTIONS,
    Accuracy,
    Bar,
    call,
    eps_of,
    exact,
    kl_terms,
    layouts,
    reduced,
    shapes_of,
    spread,
    ulps,
)
from vae_fast import gaussian_kl, reference, reparameterize, sample_and_kl

KEY = torch.tensor([-6307219531214093051, 8173645283406811107])
PRIOR = pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
# Near 1 Box-Muller's radius in float32 has few digits, in every implementation: the sums of z
# are held to plain PyTorch's error, but a single element only to this many epsilons.
NOISE = 4096.0


def seeded(shape):
    return torch.Generator().manual_seed(len(shape) * 1000 + sum(shape))


@functools.cache
def parameters(shape, dtype, prior=False):
    """mu and logvar, and the prior's two: of the size networks give, and some far from it."""
    generator = seeded(shape)

    def draw(scale, every):
        t = scale * torch.randn(shape, generator=generator)
        t.view(-1)[::every] *= 4
        t.view(-1)[5::40] *= 0.01
        return t.clamp(-9, 9).to(dtype)

    return tuple(
        draw(s, e) for s, e in [(1.5, 11), (1.5, 13), (1, 17), (1, 19)][: 4 if prior else 2]
    )


# --- plain PyTorch, in the inputs' own dtype -----------------------------------------------------


@functools.cache
def eager_noise(shape, dtype):
    return reference.normal(KEY, shape, dtype)


def eager_sample(mu, logvar, num_samples=None):
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    eps = eager_noise(tuple(shape), reference.compute_dtype(mu)).to(mu.dtype)
    return mu + torch.exp(0.5 * logvar) * eps


def eager_kl(mu, logvar, prior_mu=None, prior_logvar=None, reduction="sum"):
    if prior_mu is None:
        terms = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    else:
        terms = 0.5 * (
            prior_logvar
            - logvar
            - 1
            + (logvar - prior_logvar).exp()
            + (mu - prior_mu).pow(2) / prior_logvar.exp()
        )
    return reference.reduce(terms, reduction)


def sums(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def kl_truth(shape, dtype, prior):
    """``kl_terms``, and the size of the terms in the gradients. That of a logvar is a difference,
    exp(l) - 1 and the like, and its errors are counted in ulps of its larger term: in ulps of a
    difference near 0, the largest of a sample depends on luck alone."""
    inputs = parameters(shape, dtype, prior)
    terms, slopes = kl_terms(*inputs)
    if not prior:
        ratio, distance = np.exp(exact(inputs[1])), 0 * exact(inputs[1])
    else:
        ratio = np.exp(exact(inputs[1]) - exact(inputs[3]))
        distance = slopes[0] * (exact(inputs[0]) - exact(inputs[2]))
    sizes = [np.abs(slopes[0]), np.maximum(ratio, 1) / 2]
    return terms, slopes, [*sizes, sizes[0], sizes[1] + distance / 2][: len(inputs)]


@functools.cache
def eps_truth(shape):
    return eps_of(KEY, shape)


# --- accuracy ------------------------------------------------------------------------------------
#
# Bars do not depend on the implementation. Each is made once for a shape and dtype, and serves plain
# PyTorch, every SIMD level and the GPU.


def again(dtype, implementation):
    """The values of KEPT_BYTES to test. In half precision nothing is kept, so one is enough."""
    kept = NATIVE and vae_fast.get_backend() == "native" and implementation == "cpu"
    return (None, 0) if kept and dtype in (torch.float32, torch.float64) else (None,)


@contextlib.contextmanager
def keeping(limit):
    """Set KEPT_BYTES: with 0, backward computes the slope again instead of reading a kept one."""
    with pytest.MonkeyPatch.context() as patch:
        if limit is not None:
            patch.setattr("vae_fast.ops.gaussian.KEPT_BYTES", limit)
        yield


@functools.cache
def bars_of_reparameterize(shape, dtype, num_samples):
    """Inputs, the upstream gradient, and the bars of z and the two gradients."""
    inputs = parameters(shape, dtype)
    sets = shape if num_samples is None else (num_samples, *shape)
    upstream = torch.randn(sets, generator=seeded(shape)).to(dtype)
    (plain,), plain_grads = call(lambda *a: eager_sample(*a, num_samples), inputs, [upstream])
    mu, logvar = map(exact, inputs)
    eps, up, sigma = eps_truth(upstream.shape), exact(upstream), np.exp(logvar / 2)
    by_sample = (up, up * eps * sigma / 2)
    truths = by_sample if num_samples is None else [t.sum(0) for t in by_sample]
    bars = [Bar(plain, mu + sigma * eps.astype(mu.dtype)), *map(Bar, plain_grads, truths)]
    return inputs, upstream, bars


@pytest.mark.parametrize("num_samples", [None, 1, 3])
def test_accuracy_of_reparameterize(implementation, dtype, num_samples):
    accuracy, key = Accuracy(), KEY.to(implementation)
    for shape in shapes_of(dtype, large=num_samples is None):
        inputs, upstream, bars = bars_of_reparameterize(shape, dtype, num_samples)
        for limit in again(dtype, implementation):
            with keeping(limit):
                (z,), grads = call(
                    lambda *a: reparameterize(*a, num_samples=num_samples, noise_key=key),
                    [t.to(implementation) for t in inputs],
                    [upstream.to(implementation)],
                )
            assert z.dtype == dtype and [g.dtype for g in grads] == [dtype, dtype]
            for name, got, bar in zip(
                ("z", "grad mu", "grad logvar"), [z, *grads], bars, strict=True
            ):
                accuracy.hold(f"{name}, keeping {limit}", got, bar, NOISE)
    accuracy.check()


@functools.cache
def bars_of_kl(shape, dtype, prior, reduction):
    """The bar of the KL and, for each of two upstream gradients, the bars of the gradients."""
    inputs = parameters(shape, dtype, prior)
    (plain,), _ = call(lambda *a: eager_kl(*a, reduction=reduction), inputs)
    terms, slopes, sizes = kl_truth(shape, dtype, prior)
    grads = []
    unequal = torch.rand(plain.shape, dtype=plain.dtype, generator=seeded(shape)) * 3 - 1
    for upstream in (torch.ones_like(plain), unequal):
        _, plain_grads = call(
            lambda *a: eager_kl(*a, reduction=reduction), inputs, [upstream.to(dtype)]
        )
        factor = spread(upstream, shape, reduction)
        bars = [
            Bar(g, slope * factor, size * np.abs(factor))
            for g, slope, size in zip(plain_grads, slopes, sizes, strict=True)
        ]
        grads.append((upstream.to(sums(dtype)), bars))
    return inputs, Bar(plain, reduced(terms, reduction)), grads


@PRIOR
def test_accuracy_of_kl(implementation, dtype, prior):
    accuracy = Accuracy()
    for reduction in REDUCTIONS:
        for shape in shapes_of(dtype, large=reduction == "sum" and not prior):
            inputs, bar, grad_bars = bars_of_kl(shape, dtype, prior, reduction)
            for upstream, bars in grad_bars:
                (kl,), grads = call(
                    lambda *a, reduction=reduction: gaussian_kl(*a, reduction=reduction),
                    [t.to(implementation) for t in inputs],
                    [upstream.to(implementation)],
                )
                assert kl.dtype == sums(dtype) and all(g.dtype == dtype for g in grads)
                accuracy.hold(f"kl {reduction}", kl, bar)
                for i, (grad, bar_of_grad) in enumerate(zip(grads, bars, strict=True)):
                    accuracy.hold(f"grad {i} {reduction}", grad, bar_of_grad, NOISE)
    accuracy.check()


@functools.cache
def bars_of_sample_and_kl(shape, dtype, prior, reduction):
    """The bars of z and the KL and, without and with a gradient of z, those of the gradients."""
    inputs = parameters(shape, dtype, prior)

    def plain_op(mu, logvar, *prior):
        kl = eager_kl(mu, logvar, *prior, reduction=reduction)
        return eager_sample(mu, logvar), kl

    plain, _ = call(plain_op, inputs)
    mu, logvar = exact(inputs[0]), exact(inputs[1])
    eps, sigma = eps_truth(shape).astype(mu.dtype), np.exp(logvar / 2)
    terms, slopes, sizes = kl_truth(shape, dtype, prior)
    grads = []
    generator = seeded(shape)
    for of_z in (torch.zeros(shape), torch.randn(shape, generator=generator)):
        of_z = of_z.to(dtype)
        of_kl = torch.rand(plain[1].shape, dtype=plain[1].dtype, generator=generator) * 3 - 1
        _, plain_grads = call(plain_op, inputs, [of_z, of_kl])
        up, factor = exact(of_z), spread(of_kl, shape, reduction)
        from_z = [up, up * eps * sigma / 2, 0 * up, 0 * up][: len(inputs)]
        bars = [
            Bar(g, slope * factor + z, size * np.abs(factor) + np.abs(z))
            for g, slope, size, z in zip(plain_grads, slopes, sizes, from_z, strict=True)
        ]
        grads.append(([of_z, of_kl.to(sums(dtype))], bars))
    return (
        inputs,
        [Bar(plain[0], mu + sigma * eps), Bar(plain[1], reduced(terms, reduction))],
        grads,
    )


@PRIOR
def test_accuracy_of_sample_and_kl(implementation, dtype, prior):
    accuracy, key = Accuracy(), KEY.to(implementation)
    for reduction in REDUCTIONS:
        for shape in shapes_of(dtype, large=False):
            inputs, bars, grad_bars = bars_of_sample_and_kl(shape, dtype, prior, reduction)
            for limit in again(dtype, implementation):
                for upstream, bars_of_grads in grad_bars:
                    with keeping(limit):
                        values, grads = call(
                            lambda *a, r=reduction: sample_and_kl(*a, noise_key=key, reduction=r),
                            [t.to(implementation) for t in inputs],
                            [t.to(implementation) for t in upstream],
                        )
                    how = f"{reduction}, keeping {limit}"
                    for i, (grad, bar) in enumerate(zip(grads, bars_of_grads, strict=True)):
                        accuracy.hold(f"grad {i} {how}", grad, bar, NOISE)
                accuracy.hold(f"z {how}", values[0], bars[0], NOISE)
                accuracy.hold(f"kl {how}", values[1], bars[1])
    accuracy.check()


def test_kl_of_a_gaussian_to_itself_is_zero(implementation, dtype):
    mu, logvar = (t.to(implementation) for t in parameters((41, 401), dtype))
    (kl,), grads = call(lambda *a: gaussian_kl(*a, reduction="none"), [mu, logvar, mu, logvar])
    assert kl.eq(0).all() and all(g.eq(0).all() for g in grads)
    zero = torch.zeros(3, 50, dtype=dtype, device=implementation)
    (kl,), grads = call(lambda *a: gaussian_kl(*a), [zero, zero])
    assert kl.item() == 0 and all(g.eq(0).all() for g in grads)


@pytest.mark.parametrize("shape", [(1, 20), (20,), (1, 1), ()], ids=str)
def test_priors_broadcast(backend, shape, reduction):
    mu, logvar = parameters((128, 20), torch.float32)
    prior = [torch.randn(shape), torch.randn(shape)]
    got, grads = call(lambda *a: gaussian_kl(*a, reduction=reduction), [mu, logvar, *prior])
    want, want_grads = call(
        lambda *a: eager_kl(*a, reduction=reduction), [t.double() for t in (mu, logvar, *prior)]
    )
    torch.testing.assert_close(got[0], want[0].float())
    for g, w in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(g, w.float(), rtol=1e-4, atol=1e-5)


# --- noise ---------------------------------------------------------------------------------------


def test_one_key_is_one_noise_everywhere(cpu_level, dtype):
    """z of the kernels and of plain PyTorch agree to a few ulps of the terms that make it."""
    for shape in ((128, 20), (41, 401), (7,), (3, 7, 5)):
        mu, logvar = parameters(shape, dtype)
        with vae_fast.set_backend("reference"):
            want = reparameterize(mu, logvar, noise_key=KEY)
        z = reparameterize(mu, logvar, noise_key=KEY)
        size = mu.double().abs() + (want.double() - mu.double()).abs()
        off = (z.double() - want.double()).abs() / size
        assert off.max() <= 4 * torch.finfo(dtype).eps
        assert torch.equal(sample_and_kl(mu, logvar, noise_key=KEY)[0], z)


def test_sample_k_takes_the_kth_stretch_of_the_noise(implementation):
    """Element i of draw k is normal k * n + i, whatever k * n is modulo 4."""
    key = KEY.to(implementation)
    for shape in ((3, 7), (5,), (4, 4), (1, 1), (41, 101)):
        n = torch.Size(shape).numel()
        zeros = torch.zeros(shape, device=implementation)
        z = reparameterize(zeros, zeros, num_samples=5, noise_key=key)
        assert z.shape == (5, *shape)
        want = eps_of(KEY, (5 * n,)).reshape(5, *shape)
        assert np.abs(exact(z) - want).max() < 1e-3
        flat = torch.zeros(5 * n, device=implementation)
        assert torch.equal(reparameterize(flat, flat, noise_key=key), z.reshape(-1))


def test_each_call_draws_fresh_noise(backend):
    mu, logvar = torch.zeros(64, 20), torch.zeros(64, 20)
    draws = [reparameterize(mu, logvar), reparameterize(mu, logvar), sample_and_kl(mu, logvar)[0]]
    draws += list(reparameterize(mu, logvar, num_samples=2))
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert (a == b).float().mean() < 0.01


def test_manual_seed_reproduces(backend):
    mu, logvar = torch.randn(64, 20), torch.randn(64, 20)

    def draw():
        torch.manual_seed(5)
        z, _ = sample_and_kl(mu, logvar)
        return torch.stack(
            [z, reparameterize(mu, logvar), *reparameterize(mu, logvar, num_samples=2)]
        )

    assert torch.equal(draw(), draw())


def test_backward_has_the_noise_of_forward(backend):
    """dz/dlogvar = (z - mu) / 2, which needs forward's eps."""
    mu, logvar = parameters((128, 20), torch.float64)
    for op, limit in itertools.product(
        (reparameterize, lambda *a: sample_and_kl(*a)[0]), again(torch.float64, "cpu")
    ):
        with keeping(limit):
            (z,), grads = call(op, [mu, logvar])
        torch.testing.assert_close(grads[0], torch.ones_like(mu))
        torch.testing.assert_close(grads[1], (z - mu) / 2)


def test_what_backward_reads(native, monkeypatch):
    """It reads the kept slope if there is one, else the key."""
    mu, logvar = (t.requires_grad_() for t in parameters((128, 20), torch.float32))
    for op in (reparameterize, lambda *a, **k: sample_and_kl(*a, **k)[0]):
        for limit, reads_key in ((1 << 22, False), (mu.nbytes, False), (mu.nbytes - 1, True)):
            monkeypatch.setattr("vae_fast.ops.gaussian.KEPT_BYTES", limit)
            key = KEY.clone()
            z = op(mu, logvar, noise_key=key)
            slope = (z - mu).detach() / 2
            key.data.zero_()  # unseen by autograd: reading the key now gives other noise
            (grad,) = torch.autograd.grad(z, logvar, torch.ones_like(z))
            assert torch.allclose(grad, slope, atol=1e-5) != reads_key
        half = mu.detach().bfloat16().requires_grad_()
        key = KEY.clone()
        z = op(half, half.detach(), noise_key=key)
        other = op(half.detach(), half, noise_key=key)
        (kept,) = torch.autograd.grad(other, half, torch.ones_like(other), retain_graph=True)
        key.data.zero_()
        (again,) = torch.autograd.grad(other, half, torch.ones_like(other))
        assert not torch.equal(kept, again) and torch.equal(z, other)


# --- dtypes and layouts --------------------------------------------------------------------------

MIXTURES = [
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float64, torch.float64),
]


@pytest.mark.parametrize("mu_dtype, logvar_dtype, result", MIXTURES, ids=str)
def test_mixed_dtypes(backend, mu_dtype, logvar_dtype, result):
    mu, logvar = torch.randn(6, 10).to(mu_dtype), torch.randn(6, 10).to(logvar_dtype)
    (z, kl), grads = call(lambda *a: sample_and_kl(*a, noise_key=KEY), [mu, logvar])
    assert z.dtype == result and kl.dtype == sums(result)
    assert [g.dtype for g in grads] == [mu_dtype, logvar_dtype]
    want = gaussian_kl(mu.double(), logvar.double())
    torch.testing.assert_close(kl.double(), want, rtol=1e-5, atol=0)
    # The prior's dtypes count too, and its gradients come in them.
    prior = torch.randn(10).to(torch.float16), torch.randn(10).to(torch.bfloat16)
    _, grads = call(lambda *a: sample_and_kl(*a), [mu, logvar, *prior])
    assert [g.dtype for g in grads] == [mu_dtype, logvar_dtype, torch.float16, torch.bfloat16]
    assert [g.shape for g in grads] == [(6, 10), (6, 10), (10,), (10,)]


def same(a, b, message=""):
    """To the bit in our kernels; plain PyTorch sums other layouts in another order."""
    if vae_fast.get_backend() == "native":
        assert torch.equal(a, b), message
    else:
        torch.testing.assert_close(a, b, msg=message or None)


@PRIOR
def test_layouts(backend, dtype, prior, reduction):
    inputs = parameters((41, 401), dtype, prior)
    upstream = [torch.randn(41, 401).to(dtype), torch.ones(41 if reduction == "none" else ())]
    upstream[1] = upstream[1].to(sums(dtype))

    def everything(inputs, upstream):
        values, grads = call(
            lambda *a: sample_and_kl(*a, noise_key=KEY, reduction=reduction), inputs, upstream
        )
        return [*values, *grads, gaussian_kl(*inputs, reduction=reduction)]

    want = everything(inputs, upstream)
    for name, view in layouts(inputs[0]).items():
        other = "transposed" if name != "transposed" else "every other row"
        views = [view, layouts(inputs[1])[other], *inputs[2:]]
        for got, w in zip(everything(views, upstream), want, strict=True):
            same(got, w, name)
        strided = [layouts(upstream[0])[name], upstream[1]]
        for got, w in zip(everything(inputs, strided), want, strict=True):
            same(got, w, f"upstream {name}")


@pytest.mark.parametrize("num_samples", [None, 2])
def test_channels_last_has_the_same_noise(implementation, num_samples):
    key = KEY.to(implementation)
    mu, logvar = (t.view(4, 3, 5, 6).to(implementation) for t in parameters((360,), torch.float32))
    last = mu.contiguous(memory_format=torch.channels_last)

    def op(*a):
        z = reparameterize(*a, num_samples=num_samples, noise_key=key)
        return z, *sample_and_kl(*a, noise_key=key, reduction="none")

    want, want_grads = call(op, [mu, logvar])
    for inputs in ([last, logvar], [mu, logvar.contiguous(memory_format=torch.channels_last)]):
        got, grads = call(op, inputs)
        for g, w in zip([*got, *grads], [*want, *want_grads], strict=True):
            torch.testing.assert_close(g, w)


def test_expanded_inputs(backend):
    """One mu and one logvar for all samples: distinct noise, and gradients add up."""
    row = torch.zeros(1, 30)
    (z, kl), grads = call(
        lambda m, lv: sample_and_kl(m.expand(8, 30), lv.expand(8, 30)), [row + 2, row]
    )
    assert z.unique().numel() > 200
    torch.testing.assert_close(kl, torch.tensor(8 * 30 * 2.0))
    torch.testing.assert_close(grads[0], torch.full((1, 30), 8 * (1 + 2.0)))
    torch.testing.assert_close(grads[1], (z - 2).sum(0, keepdim=True) / 2, rtol=1e-4, atol=1e-5)


@PRIOR
def test_inputs_are_never_written_to(backend, prior, reduction):
    inputs = [t.clone() for t in parameters((41, 401), torch.float32, prior)]
    key = KEY.clone()
    upstream = [torch.randn(41, 401), torch.rand(41 if reduction == "none" else ())]
    before = [t.clone() for t in (*inputs, *upstream, key)]
    call(lambda *a: sample_and_kl(*a, noise_key=key, reduction=reduction), inputs, upstream)
    call(lambda *a: gaussian_kl(*a, reduction=reduction), inputs, upstream[1:])
    call(lambda *a: reparameterize(*a, noise_key=key), inputs[:2], upstream[:1])
    for t, b in zip((*inputs, *upstream, key), before, strict=True):
        assert torch.equal(t, b)


# --- upstream gradients --------------------------------------------------------------------------


@PRIOR
def test_only_z_or_only_kl(backend, prior, reduction):
    inputs = [t.clone().requires_grad_() for t in parameters((41, 401), torch.float64, prior)]
    z, kl = sample_and_kl(*inputs, noise_key=KEY, reduction=reduction)
    grads = torch.autograd.grad(z.sum(), inputs[:2], retain_graph=True)
    torch.testing.assert_close(grads[0], torch.ones_like(z))
    torch.testing.assert_close(grads[1], ((z - inputs[0]) / 2).detach())
    grads = torch.autograd.grad(kl.sum(), inputs)
    want = torch.autograd.grad(eager_kl(*inputs, reduction=reduction).sum(), inputs)
    for g, w in zip(grads, want, strict=True):
        torch.testing.assert_close(g, w)


def test_z_alone_leaves_the_prior_without_gradient(backend):
    inputs = [t.clone().requires_grad_() for t in parameters((128, 20), torch.float32, True)]
    sample_and_kl(*inputs)[0].sum().backward()
    assert inputs[2].grad is None and inputs[3].grad is None


@pytest.mark.parametrize(
    "upstream",
    [
        lambda: torch.tensor(1.7).expand(41),
        lambda: torch.rand(41, 3)[:, 1],
        lambda: torch.rand(41).flip(0),
        lambda: torch.zeros(41),
    ],
    ids=["expanded", "sliced", "unequal", "zeros"],
)
@PRIOR
def test_unequal_upstream_gradients(backend, prior, upstream):
    inputs, up = parameters((41, 401), torch.float32, prior), upstream()
    _, grads = call(lambda *a: gaussian_kl(*a, reduction="none"), inputs, [up])
    for grad, slope in zip(grads, kl_terms(*inputs)[1], strict=True):
        want = torch.tensor(slope * up.double().numpy()[:, None])
        torch.testing.assert_close(grad, want.float(), rtol=1e-5, atol=1e-6)
    expanded = torch.tensor(0.3).expand(41, 401)  # of z, with stride 0
    _, grads = call(lambda *a: reparameterize(*a, noise_key=KEY), inputs[:2], [expanded])
    assert torch.equal(grads[0], torch.full((41, 401), 0.3))


def test_sums_of_outputs(backend):
    """.sum() sends expanded gradients of stride 0, slices send padded ones."""
    inputs = [t.clone().requires_grad_() for t in parameters((41, 401), torch.float64)]
    z, kl = sample_and_kl(*inputs, noise_key=KEY, reduction="none")
    (z.sum() + kl.sum()).backward()
    eps_sigma = (z - inputs[0]).detach()
    want = 1 + inputs[0].detach(), eps_sigma / 2 + torch.expm1(inputs[1].detach()) / 2
    torch.testing.assert_close(inputs[0].grad, want[0])
    torch.testing.assert_close(inputs[1].grad, want[1])
    inputs[0].grad = None
    sample_and_kl(*inputs, noise_key=KEY)[0].t()[5:9, ::2].sum().backward()
    mask = torch.zeros(41, 401, dtype=torch.float64)
    mask[::2, 5:9] = 1
    torch.testing.assert_close(inputs[0].grad, mask)


def test_backward_twice(backend, reduction):
    inputs = [t.clone().requires_grad_() for t in parameters((41, 401), torch.float32, True)]
    z, kl = sample_and_kl(*inputs, reduction=reduction)
    loss = z.sum() + 2 * kl.sum()
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in inputs]
    for t in inputs:
        t.grad.mul_(100)
        t.grad = None
    loss.backward(retain_graph=True)
    assert all(torch.equal(t.grad, f) for t, f in zip(inputs, first, strict=True))
    loss.backward()
    for t, f in zip(inputs, first, strict=True):
        torch.testing.assert_close(t.grad, 2 * f)


def test_kl_used_twice(backend, reduction):
    inputs = [t.clone().requires_grad_() for t in parameters((41, 401), torch.float64)]
    _, kl = sample_and_kl(*inputs, reduction=reduction)
    (kl.sum() + (2 * kl).sum()).backward()
    scale = 41 if reduction == "batchmean" else 1
    torch.testing.assert_close(inputs[0].grad, 3 * inputs[0].detach() / scale)


# --- extremes ------------------------------------------------------------------------------------


def test_extreme_logvars(implementation, dtype):
    """logvar of ±100: what fits the dtype is right, what doesn't is infinite, nothing is NaN."""
    key = KEY.to(implementation)
    logvar = torch.tensor([100.0, -100.0, 100.0, -100.0, 60.0, -60.0], dtype=dtype)[:, None]
    mu = torch.tensor([0.0, 0.0, 3.0, -3.0, 1.0, 1.0], dtype=dtype)[:, None]
    (z, kl), grads = call(
        lambda *a: sample_and_kl(*a, noise_key=key, reduction="none"),
        [mu.to(implementation), logvar.to(implementation)],
        [torch.zeros_like(mu).to(implementation), torch.ones(6, dtype=sums(dtype)).to(key.device)],
    )
    terms, slopes = kl_terms(mu, logvar)
    draws = exact(mu) + np.exp(exact(logvar) / 2) * eps_of(KEY, (6, 1))
    assert ulps(z, draws).max() <= 64
    assert ulps(kl, terms[:, 0]).max() <= 8
    for grad, slope in zip(grads, slopes, strict=True):
        assert ulps(grad, slope).max() <= 8


@pytest.mark.parametrize("prior_logvar", [100.0, -100.0, 60.0])
def test_extreme_priors(implementation, prior_logvar):
    """At the prior's own mean nothing is infinite but what must be."""
    one = torch.ones(4, 3, device=implementation)
    inputs = [2 * one, prior_logvar * one, 2 * one, prior_logvar * one]
    (kl,), grads = call(gaussian_kl, inputs)
    assert kl.item() == 0
    for grad in grads:
        assert grad.eq(0).all()
    (kl,), grads = call(gaussian_kl, [2 * one, 0 * one, 2.5 * one, prior_logvar * one])
    terms, _ = kl_terms(2 * one, 0 * one, 2.5 * one, prior_logvar * one)
    want = float(terms.sum())
    assert kl.item() == (pytest.approx(want, rel=1e-5) if want < 3e38 else np.inf)
    assert not any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("bad", range(4), ids=["mu", "logvar", "prior_mu", "prior_logvar"])
def test_nan_propagates(implementation, dtype, bad):
    """One NaN, in a vector's body and in a tail, reaches the draw, the KL and the gradients."""
    key = KEY.to(implementation)
    for position, reduction in ((0, "sum"), (100, "none"), (402, "batchmean"), (402, "none")):
        inputs = [torch.full((3, 403), 0.25, dtype=dtype) for _ in range(4 if bad > 1 else 2)]
        inputs[bad][1, position] = float("nan")
        inputs = [t.to(implementation) for t in inputs]
        want = [False, True, False] if reduction == "none" else True
        (kl,), grads = call(lambda *a, r=reduction: gaussian_kl(*a, reduction=r), inputs)
        assert kl.isnan().tolist() == want
        own = grads[bad] if bad != 2 else grads[0]
        assert own.isnan().nonzero().tolist() == [[1, position]]
        (z, kl), grads = call(
            lambda *a, r=reduction: sample_and_kl(*a, noise_key=key, reduction=r), inputs
        )
        assert kl.isnan().tolist() == want
        assert z.isnan().nonzero().tolist() == ([[1, position]] if bad < 2 else [])
        own = grads[bad] if bad != 2 else grads[0]
        assert own.isnan().nonzero().tolist() == [[1, position]]
        if bad < 2:
            (z,), grads = call(lambda *a: reparameterize(*a, noise_key=key), inputs)
            assert z.isnan().nonzero().tolist() == [[1, position]]
            assert grads[1].isnan().any() == (bad == 1)


def test_infinite_parameters(implementation):
    inf = float("inf")
    mu = torch.tensor([[inf], [-inf], [1.0], [1.0]], device=implementation)
    logvar = torch.tensor([[0.0], [0.0], [inf], [-inf]], device=implementation)
    z, kl = sample_and_kl(mu, logvar, noise_key=KEY.to(implementation), reduction="none")
    assert kl.tolist()[:2] == [inf] * 2 and kl[3].item() == inf
    assert not kl[2].isfinite()  # exp(l) - l: infinity, or NaN
    assert z[:2].flatten().tolist() == [inf, -inf]
    assert z[2].isinf().all() and z[3].item() == 1.0


@PRIOR
def test_empty(implementation, dtype, prior):
    shapes = (0, 5), (5, 0), (0,), (0, 3, 4)
    for shape, reduction in itertools.product(shapes, REDUCTIONS):
        inputs = [torch.zeros(shape, dtype=dtype, device=implementation)] * (4 if prior else 2)
        (z, kl), grads = call(lambda *a, r=reduction: sample_and_kl(*a, reduction=r), inputs)
        (alone,), _ = call(lambda *a, r=reduction: gaussian_kl(*a, reduction=r), inputs)
        assert z.shape == shape and z.dtype == dtype
        assert all(g.shape == shape and g.dtype == dtype for g in grads)
        draws = reparameterize(*inputs[:2], num_samples=3)
        assert draws.shape == (3, *shape)
        for value in (kl, alone):
            if reduction == "none":
                assert value.tolist() == ([0.0] * shape[0] if len(shape) > 1 else 0.0)
            elif reduction == "batchmean" and len(shape) > 1 and shape[0] == 0:
                assert value.isnan()  # a mean over no samples
            else:
                assert value.item() == 0.0


def test_scalars(backend):
    z = reparameterize(torch.tensor(1.0), torch.tensor(-200.0))
    assert z.shape == () and z.item() == 1.0
    assert gaussian_kl(torch.tensor(1.0), torch.tensor(0.0), reduction="none").item() == 0.5
    assert (
        reparameterize(torch.tensor(1.0), torch.tensor(-200.0), num_samples=3).tolist() == [1.0] * 3
    )
