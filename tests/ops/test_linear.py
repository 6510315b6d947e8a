"""linear_bernoulli_nll: the last layer and the loss in one op, against the two spelt out."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import vae_fast
from vae_fast import reference

SHAPES = [(1, 1, 1), (7, 3, 5), (41, 17, 401), (300, 40, 784)]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def inputs(shape, dtype, bias=True):
    samples, width, features = shape
    g = torch.Generator().manual_seed(samples + features)
    hidden = torch.randn(samples, width, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(features, width, generator=g) / width**0.5).to(dtype).requires_grad_()
    b = torch.randn(features, generator=g).to(dtype).requires_grad_() if bias else None
    target = torch.randint(0, 256, (samples, features), generator=g, dtype=torch.uint8)
    return hidden, weight, b, target


def truth(hidden, weight, bias, target, reduction, upstream):
    """Value and gradients in float64, by plain PyTorch."""
    leaves = [t.detach().double().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    logits = F.linear(*leaves)
    t = reference.as_probability(target, torch.float64)
    terms = F.binary_cross_entropy_with_logits(logits, t, reduction="none").sum(1)
    value = {"sum": terms.sum(), "batchmean": terms.sum() / len(terms), "none": terms}[reduction]
    return value, torch.autograd.grad((value * upstream).sum(), leaves)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_layer_and_loss(dtype):
    reductions = ("sum", "batchmean", "none")
    for shape, reduction, bias in itertools.product(SHAPES, reductions, (True, False)):
        equals_layer_and_loss(shape, dtype, reduction, bias)


def equals_layer_and_loss(shape, dtype, reduction, bias):
    hidden, weight, b, target = inputs(shape, dtype, bias)
    value = vae_fast.linear_bernoulli_nll(hidden, weight, b, target, reduction=reduction)
    upstream = torch.linspace(0.5, 2.0, value.numel(), dtype=torch.float64).reshape(value.shape)
    leaves = [t for t in (hidden, weight, b) if t is not None]
    grads = torch.autograd.grad((value * upstream).sum(), leaves)
    expected, expected_grads = truth(hidden, weight, b, target, reduction, upstream)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    for grad, exact, leaf in zip(grads, expected_grads, leaves, strict=True):
        assert grad.dtype == leaf.dtype
        scale = exact.abs().max().item()
        torch.testing.assert_close(grad.double(), exact, rtol=0.0, atol=tolerance * scale + 1e-30)


@pytest.mark.usefixtures("native")
def test_chunks_do_not_change_the_result(monkeypatch):
    """One chunk, many chunks and a last one that is short give the same numbers."""
    from vae_fast.ops.linear import CHUNK_BYTES  # only imports where kernels are built

    hidden, weight, bias, target = inputs((300, 40, 784), torch.float64)

    def run():
        value = vae_fast.linear_bernoulli_nll(hidden, weight, bias, target)
        return value, *torch.autograd.grad(value, (hidden, weight, bias))

    whole = run()
    for rows in (1, 7, 128, 299):
        monkeypatch.setitem(CHUNK_BYTES, "cpu", rows * 784 * 8)
        for a, b in zip(run(), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("library", ["mkl", "onednn"])
def test_products_of_either_library(monkeypatch, library, reduction, bias):
    """Both are right on every processor, and the library that was chosen runs."""
    from vae_fast.ops import linear, matmul

    if library == "onednn" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    asked = []
    product = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda *a: asked.append(a) or product(*a))
    monkeypatch.setattr(matmul, "LARGE", 0)
    monkeypatch.setattr(matmul, "float32_library", lambda: library)
    monkeypatch.setitem(linear.CHUNK_BYTES, "cpu", 128 * 784 * 4)  # 100 samples a chunk
    hidden, weight, b, target = inputs((300, 40, 784), torch.float32, bias)
    value = vae_fast.linear_bernoulli_nll(hidden, weight, b, target, reduction=reduction)
    leaves = [t for t in (hidden, weight, b) if t is not None]
    grads = torch.autograd.grad(value.sum(), leaves)
    assert bool(asked) == (library == "onednn")
    expected, expected_grads = truth(hidden, weight, b, target, reduction, 1.0)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=0)
    for grad, exact in zip(grads, expected_grads, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(grad.double(), exact, rtol=0.0, atol=2e-5 * scale)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("chunks", [1, 2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_chunks_keep_half_precisions_digits(monkeypatch, dtype, chunks):
    """Gradients of weight and bias are at most twice as far from float64 as plain PyTorch's."""
    from vae_fast.ops import linear

    hidden, weight, bias, target = inputs((300, 40, 784), dtype)
    monkeypatch.setitem(linear.CHUNK_BYTES, "cpu", 300 // chunks * 784)  # halves take twice that
    assert len(linear._chunks(hidden, target)) == chunks
    value = vae_fast.linear_bernoulli_nll(hidden, weight, bias, target)
    grads = torch.autograd.grad(value, (weight, bias))
    _, (_, *exact) = truth(hidden, weight, bias, target, "sum", 1.0)
    plain = reference.linear_bernoulli_nll(hidden, weight, bias, target, "sum")
    plain_grads = torch.autograd.grad(plain, (weight, bias))
    for grad, eager, right in zip(grads, plain_grads, exact, strict=True):
        ulp = torch.finfo(dtype).eps * right.abs()
        error, allowed = (grad.double() - right).abs(), (eager.double() - right).abs()
        assert (error**2).mean() <= 4 * (allowed**2).mean()
        assert (error - ulp).max() <= 2 * allowed.max()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_backward_twice_and_a_known_upstream(reduction):
    hidden, weight, bias, target = inputs((41, 17, 401), torch.float32)
    value = vae_fast.linear_bernoulli_nll(hidden, weight, bias, target, reduction=reduction).sum()
    first = torch.autograd.grad(value, (hidden, weight, bias), retain_graph=True)
    copies = [g.clone() for g in first]
    for g in first:
        g.zero_()  # what was handed out is the caller's
    second = torch.autograd.grad(value, (hidden, weight, bias), retain_graph=True)
    tripled = torch.autograd.grad(3.0 * value, (hidden, weight, bias))
    for a, b, c in zip(copies, second, tripled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(3.0 * a, c, rtol=1e-5, atol=3e-5)


@pytest.mark.usefixtures("native")
def test_inputs_are_not_written_to_and_pictures_are_targets():
    hidden, weight, bias, target = inputs((12, 5, 16), torch.float32)
    before = [t.detach().clone() for t in (hidden, weight, bias, target)]
    pictures = target.reshape(12, 1, 4, 4)
    value = vae_fast.linear_bernoulli_nll(hidden, weight, bias, pictures)
    value.backward()
    for t, copy in zip((hidden, weight, bias, target), before, strict=True):
        assert torch.equal(t.detach(), copy)
    flat = vae_fast.linear_bernoulli_nll(hidden, weight, bias, target)
    assert torch.equal(value, flat)


@pytest.mark.usefixtures("backend")
def test_autocast_is_the_layer_in_bfloat16():
    hidden, weight, bias, target = inputs((41, 17, 401), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = vae_fast.linear_bernoulli_nll(hidden, weight, bias, target)
    value.backward()
    assert weight.grad.dtype == torch.float32
    cast = [t.detach().bfloat16() for t in (hidden, weight, bias)]
    torch.testing.assert_close(value, vae_fast.linear_bernoulli_nll(*cast, target))


def test_no_samples():
    hidden, weight, bias, target = inputs((7, 3, 5), torch.float32)
    value = vae_fast.linear_bernoulli_nll(hidden[:0], weight, bias, target[:0])
    assert value.item() == 0.0
    value.backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_refusals():
    hidden, weight, bias, target = inputs((7, 3, 5), torch.float32)
    with pytest.raises(ValueError, match=r"\(7, 3\) and \(5, 4\)"):
        vae_fast.linear_bernoulli_nll(hidden, torch.randn(5, 4), bias, target)
    with pytest.raises(ValueError, match=r"bias has shape \(4,\)"):
        vae_fast.linear_bernoulli_nll(hidden, weight, torch.randn(4), target)
    with pytest.raises(ValueError, match=r"target has shape \(7, 4\)"):
        vae_fast.linear_bernoulli_nll(hidden, weight, bias, target[:, :4])
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16"):
        vae_fast.linear_bernoulli_nll(hidden, weight.bfloat16(), bias, target)
    with pytest.raises(TypeError, match="int64"):
        vae_fast.linear_bernoulli_nll(hidden, weight, bias, target.long())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["uint8", "bool", "float"])
def test_sample_sets_share_a_target(dtype, kind):
    g = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(5, 7, 3, 11, generator=g)).to(dtype).requires_grad_()
    target = torch.randint(0, 256, (7, 3, 11), generator=g, dtype=torch.uint8)
    target = {"uint8": target, "bool": target > 99, "float": (target / 255.0).to(dtype)}[kind]
    nll = vae_fast.bernoulli_nll_samples(logits, target)
    upstream = torch.linspace(-1.0, 2.0, 35, dtype=torch.float64).reshape(5, 7)
    (grad,) = torch.autograd.grad((nll * upstream).sum(), logits)
    exact_logits = logits.detach().double().requires_grad_()
    t = reference.as_probability(target, torch.float64).expand_as(exact_logits)
    exact = F.binary_cross_entropy_with_logits(exact_logits, t, reduction="none").flatten(2).sum(2)
    (exact_grad,) = torch.autograd.grad((exact * upstream).sum(), exact_logits)
    torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-6)
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(grad.double(), exact_grad, rtol=bound, atol=bound)


def test_sample_sets_refuse_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(5, 7, 3\) and \(6, 3\)"):
        vae_fast.bernoulli_nll_samples(torch.randn(5, 7, 3), torch.rand(6, 3))
