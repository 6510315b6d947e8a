"""bce_kl_loss: that its parts are bernoulli_nll and gaussian_kl, and what joins them.

The elements' accuracy is tested here too, since the joint kernels walk both extents on their own.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vae_fast
from tests.ops.accuracy import (
    Accuracy,
    bernoulli_terms,
    call,
    kl_terms,
    layouts,
    reduced,
    spread,
)
from vae_fast import LossOutput, bce_kl_loss, bernoulli_nll, gaussian_kl, reference

# Shapes of images and latents: a usual batch, odd sizes, images of more dims, one sample, fewer
# features than latents, none at all.
EXTENTS = (
    ((128, 784), (128, 20)),
    ((41, 401), (41, 33)),
    ((6, 3, 7, 5), (6, 2, 3)),
    ((7,), (3,)),
    ((5, 3), (5, 1031)),
    ((0, 5), (0, 3)),
    ((5, 0), (5, 3)),
    ((5, 3), (5, 0)),
)


@functools.cache
def case(extents, dtype, target_kind, from_logits=True):
    """Logits, target, mu, logvar; the truth about each part."""
    images, latents = extents
    generator = torch.Generator().manual_seed(sum(images))
    x = 4 * torch.randn(images, generator=generator)
    x = x if from_logits else torch.sigmoid(x)
    target = torch.rand(images, generator=generator)
    if target_kind == "uint8":
        target = (target * 256).to(torch.uint8)
    elif target_kind == "bool":
        target = target > 0.5
    else:
        target = target.to(dtype)
    mu, logvar = (1.5 * torch.randn(latents, generator=generator) for _ in range(2))
    x, mu, logvar = x.to(dtype), mu.to(dtype), logvar.to(dtype)
    return x, target, mu, logvar, bernoulli_terms(x, target, from_logits), kl_terms(mu, logvar)


def eager(x, target, mu, logvar, beta, reduction, from_logits=True):
    """The tutorial's loss, with a choice of reduction, in the inputs' own dtype."""
    loss = F.binary_cross_entropy_with_logits if from_logits else F.binary_cross_entropy
    terms = loss(x, reference.as_probability(target, x.dtype), reduction="none")
    recon = reference.reduce(terms, reduction)
    kl = reference.reduce(-0.5 * (1 + logvar - mu.pow(2) - logvar.exp()), reduction)
    return recon + beta * kl, recon, kl


def sums(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize(
    "target_kind, from_logits",
    [("own", True), ("uint8", True), ("bool", True), ("uint8", False)],
    ids=["own", "uint8", "bool", "probabilities"],
)
def test_accuracy(implementation, dtype, target_kind, from_logits, reduction):
    accuracy = Accuracy()
    beta = 0.25  # exact in every dtype
    for extents in EXTENTS:
        x, target, mu, logvar, recon, kl = case(extents, dtype, target_kind, from_logits)
        goal = target.to(implementation)

        def op(x, mu, logvar, goal=goal):
            return bce_kl_loss(
                x, goal, mu, logvar, beta=beta, reduction=reduction, from_logits=from_logits
            )

        def plain(x, mu, logvar, target=target):
            return eager(x, target, mu, logvar, beta, reduction, from_logits)

        inputs = [x, mu, logvar]
        plain_values, _ = call(plain, inputs)
        parts = reduced(recon[0], reduction), reduced(kl[0], reduction)
        truths = [parts[0] + beta * parts[1], *parts]
        ones = torch.ones_like(plain_values[0])
        for upstream in (ones, 3 * torch.rand_like(ones) - 1):
            values, grads = call(
                op,
                [t.to(implementation) for t in inputs],
                [upstream.to(implementation, sums(dtype)), None, None],
            )
            _, plain_grads = call(plain, inputs, [upstream.to(dtype), None, None])
            for name, value, other, truth in zip(
                LossOutput._fields, values, plain_values, truths, strict=True
            ):
                assert value.dtype == sums(dtype)
                accuracy.add(name, value, other, truth)
            slopes = [recon[1], beta * kl[1][0], beta * kl[1][1]]
            for i, slope in enumerate(slopes):
                assert grads[i].dtype == dtype
                factor = spread(upstream, slope.shape, reduction)
                # For t between 0 and 1, p - t cancels, and the digits left are luck: errors count in
                # ulps of t. For t of 0 and 1 nothing cancels: errors count in ulps of the result.
                size = np.abs(slope * factor)
                if i == 0:
                    t = reference.as_probability(target, torch.float64).numpy().astype(slope.dtype)
                    size = np.maximum(size, np.where((t > 0) & (t < 1), t * np.abs(factor), 0))
                accuracy.add(f"gradient {i}", grads[i], plain_grads[i], slope * factor, size=size)
    accuracy.check()


def test_the_parts_are_the_other_ops(native, dtype, reduction):
    """One loss however it is spelt: parts and gradients to rounding."""
    beta = 4.0
    for extents in EXTENTS:
        x, target, mu, logvar, *_ = case(extents, dtype, "uint8")
        got, grads = call(
            lambda x, m, v, t=target: bce_kl_loss(x, t, m, v, beta=beta, reduction=reduction),
            [x, mu, logvar],
        )
        recon, slopes = call(lambda x, t=target: bernoulli_nll(x, t, reduction=reduction), [x])
        kl, kl_slopes = call(lambda *a: gaussian_kl(*a, reduction=reduction), [mu, logvar])
        torch.testing.assert_close(got[1], recon[0], equal_nan=True)
        torch.testing.assert_close(got[2], kl[0], equal_nan=True)
        torch.testing.assert_close(got[0], recon[0] + beta * kl[0], equal_nan=True)
        # call() summed the three outputs.
        torch.testing.assert_close(grads[0], 2 * slopes[0])
        for g, s in zip(grads[1:], kl_slopes, strict=True):
            torch.testing.assert_close(g, (1 + beta) * s)


def test_outputs_by_name(backend):
    out = bce_kl_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2, 4))
    assert isinstance(out, LossOutput)
    assert out.recon.item() == pytest.approx(6 * np.log(2), rel=1e-6)
    assert out.kl.item() == 4.0
    assert out.loss.item() == pytest.approx(6 * np.log(2) + 4, rel=1e-6)


def test_byte_targets_are_the_float_targets(implementation, reduction):
    x = torch.linspace(-8, 8, 256).repeat(3, 1).to(implementation)
    mu = torch.randn(3, 9).to(implementation)
    byte = torch.arange(256, dtype=torch.uint8, device=implementation).repeat(3, 1)
    for target in (byte, byte > 99):
        # By way of double: on a GPU torch divides by multiplying, and may lose the last bit.
        as_float = (target.double() / (255 if target.dtype == torch.uint8 else 1)).float()
        for a, b in zip(
            *(call(lambda x, t=t: bce_kl_loss(x, t, mu, mu, reduction=reduction), [x])
              for t in (target, as_float)), strict=True,
        ):  # fmt: skip
            assert all(torch.equal(i, j) for i, j in zip(a, b, strict=True))


# --- beta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1, 4, torch.tensor(0.1), torch.tensor([0.1]),
                                  torch.tensor(0.1, dtype=torch.float64), torch.tensor(2)],
                         ids=str)  # fmt: skip
def test_beta(backend, dtype, beta, reduction):
    """A number or a tensor of one, and in float64 all its digits."""
    x, target, mu, logvar, *_ = case(EXTENTS[1], dtype, "own")
    out, grads = call(
        lambda x, m, v: tuple(bce_kl_loss(x, target, m, v, beta=beta, reduction=reduction)),
        [x, mu, logvar],
    )
    torch.testing.assert_close(out[0], out[1] + float(beta) * out[2], rtol=3e-7, atol=0)
    if dtype == torch.float64:
        torch.testing.assert_close(out[0], out[1] + float(beta) * out[2], rtol=1e-15, atol=0)
    scale = 41 if reduction == "batchmean" else 1
    want = (1 + float(beta)) * mu.double() / scale
    torch.testing.assert_close(grads[1], want.to(dtype))


def test_beta_gets_no_gradient(backend):
    x, target, mu, logvar, *_ = case(EXTENTS[1], torch.float32, "own")
    beta = torch.tensor(2.0, requires_grad=True)
    out = bce_kl_loss(x.clone().requires_grad_(), target, mu, logvar, beta=beta)
    out.loss.backward()
    assert beta.grad is None


# --- dtypes and layouts --------------------------------------------------------------------------

MIXTURES = [
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float16, torch.float32),
    (torch.float64, torch.float32, torch.float64),
    (torch.float32, torch.float64, torch.float64),
]


@pytest.mark.parametrize("logits_dtype, mu_dtype, result", MIXTURES, ids=str)
def test_mixed_dtypes(backend, logits_dtype, mu_dtype, result):
    x, target = torch.randn(6, 30).to(logits_dtype), torch.rand(6, 30)
    mu, logvar = torch.randn(6, 4).to(mu_dtype), torch.randn(6, 4).to(torch.bfloat16)
    out, grads = call(lambda x, *a: tuple(bce_kl_loss(x, target, *a, beta=0.5)), [x, mu, logvar])
    assert [o.dtype for o in out] == [result] * 3
    assert [g.dtype for g in grads] == [logits_dtype, mu_dtype, torch.bfloat16]
    want = eager(x.double(), target.double(), mu.double(), logvar.double(), 0.5, "sum")
    for o, w in zip(out, want, strict=True):
        torch.testing.assert_close(o.double(), w, rtol=1e-5, atol=0)


@pytest.mark.parametrize("target_kind", ["own", "uint8"])
def test_layouts(backend, dtype, target_kind, reduction):
    x, target, mu, logvar, *_ = case(EXTENTS[1], dtype, target_kind)

    def everything(x, target, mu, logvar):
        values, grads = call(
            lambda x, *a: tuple(bce_kl_loss(x, target, *a, reduction=reduction)), [x, mu, logvar]
        )
        return [*values, *grads]

    want = everything(x, target, mu, logvar)
    for name, view in layouts(x).items():
        got = everything(view, layouts(target)["transposed"], layouts(mu)[name], logvar)
        for g, w in zip(got, want, strict=True):
            if vae_fast.get_backend() == "native":
                assert torch.equal(g, w), name
            else:
                torch.testing.assert_close(g, w, msg=name)


def test_channels_last(backend, reduction):
    """Images and latents in channels-last memory, and in both."""
    x, target = torch.randn(5, 3, 6, 7), torch.randint(256, (5, 3, 6, 7), dtype=torch.uint8)
    mu, logvar = torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2)

    def everything(x, target, mu, logvar):
        values, grads = call(
            lambda x, *a: tuple(bce_kl_loss(x, target, *a, reduction=reduction)), [x, mu, logvar]
        )
        return [*values, *grads]

    want = everything(x, target, mu, logvar)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, target, mu, logvar)]
    for inputs in (last, [last[0], target, last[2], logvar], [x, last[1], mu, last[3]]):
        for g, w in zip(everything(*inputs), want, strict=True):
            torch.testing.assert_close(g, w)


def test_inputs_are_never_written_to(backend, reduction):
    inputs = [torch.randn(6, 40), torch.randn(6, 4), torch.randn(6, 4)]
    target, beta = torch.rand(6, 40), torch.tensor(0.5)
    upstream = [torch.rand(6 if reduction == "none" else ()) for _ in range(3)]
    before = [t.clone() for t in (*inputs, target, beta, *upstream)]
    for used in (upstream, [upstream[0], None, None]):
        call(
            lambda x, *a: tuple(bce_kl_loss(x, target, *a, beta=beta, reduction=reduction)),
            inputs,
            used,
        )
    for t, b in zip((*inputs, target, beta, *upstream), before, strict=True):
        assert torch.equal(t, b)


# --- upstream gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["loss", "recon", "kl", "loss recon", "recon kl", "all"])
def test_any_of_the_three_losses(backend, parts, reduction):
    names = LossOutput._fields if parts == "all" else parts.split()
    inputs = [t.clone() for t in (torch.randn(6, 40), torch.randn(6, 4), torch.randn(6, 4))]
    target = torch.rand(6, 40)
    shape = (6,) if reduction == "none" else ()
    weights = {n: torch.rand(shape) * 4 - 2 for n in LossOutput._fields}

    def total(out, dtype):
        return sum((weights[n].to(dtype) * getattr(out, n)).sum() for n in names)

    leaves = [t.requires_grad_() for t in inputs]
    total(bce_kl_loss(leaves[0], target, *leaves[1:], beta=3.0, reduction=reduction),
          torch.float32).backward()  # fmt: skip
    wide = [t.detach().double().requires_grad_() for t in inputs]
    out = LossOutput(*eager(wide[0], target.double(), *wide[1:], 3.0, reduction))
    total(out, torch.float64).backward()
    for leaf, want in zip(leaves, wide, strict=True):
        if want.grad is None:  # not asked about: no gradient, rather than one of zeros
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, want.grad.float(), rtol=1e-4, atol=1e-5)


def test_kl_alone_does_not_see_bad_logits(backend):
    x, mu = torch.full((3, 4), float("nan"), requires_grad=True), torch.ones(3, 2)
    mu.requires_grad_()
    bce_kl_loss(x, torch.ones(3, 4), mu, torch.zeros(3, 2)).kl.backward()
    assert x.grad is None
    assert torch.equal(mu.grad, torch.ones(3, 2))


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
def test_unequal_upstream_gradients(backend, upstream):
    x, target, mu, logvar, recon, kl = case(EXTENTS[1], torch.float32, "own")
    up = upstream()
    _, grads = call(
        lambda x, *a: tuple(bce_kl_loss(x, target, *a, beta=0.5, reduction="none")),
        [x, mu, logvar],
        [up, None, None],
    )
    for grad, slope in zip(grads, (recon[1], kl[1][0] / 2, kl[1][1] / 2), strict=True):
        want = torch.tensor(slope * up.double().numpy()[:, None]).float()
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)


def test_backward_twice(backend, reduction):
    inputs = [torch.randn(6, 40), torch.randn(6, 4), torch.randn(6, 4)]
    inputs = [t.requires_grad_() for t in inputs]
    target = torch.rand(6, 40)
    loss = bce_kl_loss(inputs[0], target, *inputs[1:], reduction=reduction).loss.sum()
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in inputs]
    for t in inputs:
        t.grad.mul_(100)
        t.grad = None
    loss.backward(retain_graph=True)
    assert all(torch.equal(t.grad, f) for t, f in zip(inputs, first, strict=True))
    (3 * loss).backward()
    for t, f in zip(inputs, first, strict=True):
        torch.testing.assert_close(t.grad, 4 * f)


def test_gradients_handed_out_are_not_read_again(backend, reduction):
    inputs = [torch.randn(6, 40), torch.randn(6, 4), torch.randn(6, 4)]
    inputs = [t.requires_grad_() for t in inputs]
    loss = bce_kl_loss(inputs[0], torch.rand(6, 40), *inputs[1:], reduction=reduction).loss.sum()
    grads = torch.autograd.grad(loss, inputs, retain_graph=True)
    want = [g.clone() for g in grads]
    for grad in grads:
        grad.mul_(100)
    assert all(map(torch.equal, torch.autograd.grad(loss, inputs), want))


def test_loss_used_twice(backend, reduction):
    inputs = [torch.randn(6, 40), torch.randn(6, 4), torch.randn(6, 4)]
    inputs = [t.requires_grad_() for t in inputs]
    out = bce_kl_loss(inputs[0], torch.rand(6, 40), *inputs[1:], beta=2.0, reduction=reduction)
    (out.loss.sum() + (3 * out.loss).sum() + out.kl.sum()).backward()
    scale = 6 if reduction == "batchmean" else 1
    want = (4 * 2 + 1) * inputs[1].detach() / scale
    torch.testing.assert_close(inputs[1].grad, want)


def test_loss_scale_saves_small_gradients(backend):
    """float16 gradients below 6e-8 are 0: a loss scale must act before they are rounded."""
    x, mu = torch.full((4096, 8), 5.0).half(), torch.full((4096, 2), 1e-4).half()
    _, grads = call(
        lambda x, m: bce_kl_loss(x, torch.ones(4096, 8), m, 0 * mu, reduction="batchmean").loss,
        [x, mu],
        [torch.tensor(2.0**14)],
    )
    want = -4 * torch.sigmoid(torch.full((4096, 8), -5.0))
    torch.testing.assert_close(grads[0], want.half(), rtol=1e-3, atol=0)
    torch.testing.assert_close(grads[1], 4 * mu, rtol=1e-3, atol=0)


def test_gradient_of_the_target(backend, reduction):
    """Where the target is a network's output."""
    x, target = torch.randn(6, 40), torch.rand(6, 40)
    mu = torch.randn(6, 4)
    shape = (6,) if reduction == "none" else ()
    upstream = [torch.rand(shape), torch.rand(shape), torch.rand(shape)]
    _, grads = call(
        lambda *a: tuple(bce_kl_loss(*a, mu, mu, beta=0.5, reduction=reduction)),
        [x, target], upstream,
    )  # fmt: skip
    _, want = call(
        lambda *a: eager(*a, mu.double(), mu.double(), 0.5, reduction),
        [x.double(), target.double()],
        [u.double() for u in upstream],
    )
    for g, w in zip(grads, want, strict=True):
        torch.testing.assert_close(g, w.float(), rtol=1e-5, atol=1e-6)


# --- extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", range(4), ids=["logits", "target", "mu", "logvar"])
def test_nan_propagates(implementation, dtype, bad, reduction):
    """One NaN reaches the loss, its own part and its own gradient; the other part stays clean."""
    for position in (0, 100, 402):
        inputs = [torch.full((3, 403), 0.25, dtype=dtype) for _ in range(4)]
        inputs[bad][1, position] = float("nan")
        x, target, mu, logvar = (t.to(implementation) for t in inputs)
        out, grads = call(
            lambda x, *a, t=target: bce_kl_loss(x, t, *a, reduction=reduction).loss,
            [x, mu, logvar],
        )
        every = bce_kl_loss(x, target, mu, logvar, reduction=reduction)
        want = [False, True, False] if reduction == "none" else True
        assert out[0].isnan().tolist() == every.loss.isnan().tolist() == want
        dirty, clean = (every.recon, every.kl) if bad < 2 else (every.kl, every.recon)
        assert dirty.isnan().tolist() == want and not clean.isnan().any()
        own = grads[(0, 0, 1, 2)[bad]]
        assert own.isnan().nonzero().tolist() == [[1, position]]


def test_a_beta_of_nan_is_seen(backend):
    out = bce_kl_loss(*(torch.ones(2, 3) for _ in range(4)), beta=float("nan"))
    assert out.loss.isnan() and not out.recon.isnan() and not out.kl.isnan()


@pytest.mark.parametrize("extents", EXTENTS[-3:], ids=str)
def test_empty(implementation, dtype, extents, reduction):
    x, target, mu, logvar, *_ = (
        t.to(implementation) if isinstance(t, torch.Tensor) else t
        for t in case(extents, dtype, "uint8")
    )
    out, grads = call(
        lambda x, *a: tuple(bce_kl_loss(x, target, *a, reduction=reduction)), [x, mu, logvar]
    )
    assert [g.shape for g in grads] == [x.shape, mu.shape, logvar.shape]
    if reduction == "none":
        assert all(o.shape == (x.shape[0],) for o in out)
    elif reduction == "batchmean" and x.shape[0] == 0:
        assert all(o.isnan() for o in out)  # a mean over no samples
    else:
        assert all(o.isfinite() for o in out)
    if reduction == "sum":
        assert (out[1].item() == 0) == (x.numel() == 0)
        assert (out[2].item() == 0) == (mu.numel() == 0)
