"""bernoulli_nll: its accuracy, its targets, layouts, upstream gradients and extremes."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F

import vae_fast
from tests.ops.accuracy import (
    LARGE,
    REDUCTIONS,
    Accuracy,
    bernoulli_terms,
    call,
    layouts,
    reduced,
    shapes_of,
    spread,
)
from vae_fast import bernoulli_nll, reference
from vae_fast.backend import native_reason
from vae_fast.likelihoods.bernoulli import BERNOULLI, BERNOULLI_PROBS

INPUTS = pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
TARGETS = pytest.mark.parametrize("target_kind", ["own", "float32", "uint8", "bool"])


@functools.cache
def case(shape, dtype, target_kind, from_logits):
    """Logits (or probabilities) and targets, easy and hard, with the truth about them."""
    generator = torch.Generator().manual_seed(len(shape) * 1000 + sum(shape))
    x = 4 * torch.randn(shape, generator=generator)
    x.view(-1)[::7] *= 6
    x.view(-1)[3::50] *= 0.01
    if not from_logits:
        x = torch.sigmoid(x)  # in half precision some are exactly 0 or 1
    target = torch.rand(shape, generator=generator)
    if target_kind == "uint8":
        target = (target * 256).to(torch.uint8)
    elif target_kind == "bool":
        target = target > 0.5
    else:
        target = target.to(dtype if target_kind == "own" else torch.float32)
    x = x.to(dtype)
    return x, target, bernoulli_terms(x, target, from_logits)


def eager(x, target, reduction, from_logits):
    """Plain PyTorch in x's own dtype, its reduction too."""
    loss = F.binary_cross_entropy_with_logits if from_logits else F.binary_cross_entropy
    terms = loss(x, reference.as_probability(target, x.dtype), reduction="none")
    return reference.reduce(terms, reduction)


@INPUTS
@TARGETS
def test_accuracy(implementation, dtype, target_kind, from_logits):
    if target_kind == "float32" and dtype.itemsize > 2:
        pytest.skip("its own kernel for half precision only; test_mixed_dtypes has the others")
    accuracy = Accuracy()
    for shape in shapes_of(dtype, large=target_kind == "own" and from_logits):
        x, target, (terms, slopes) = case(shape, dtype, target_kind, from_logits)
        for reduction in REDUCTIONS if shape != LARGE else ("sum",):

            def op(x, target=target, reduction=reduction):
                target = target.to(implementation)
                return bernoulli_nll(x, target, reduction=reduction, from_logits=from_logits)

            def plain(x, target=target, reduction=reduction):
                return eager(x, target, reduction, from_logits)

            plain_values, _ = call(plain, [x])
            for factor in (None, torch.rand_like(plain_values[0]) * 3 - 1)[: 1 + (shape != LARGE)]:
                sums = torch.float64 if dtype == torch.float64 else torch.float32
                upstream = torch.ones_like(plain_values[0]) if factor is None else factor
                values, grads = call(
                    op, [x.to(implementation)], [upstream.to(implementation, sums)]
                )
                _, plain_grads = call(plain, [x], [upstream.to(dtype)])
                assert values[0].dtype == sums and grads[0].dtype == dtype
                mark = f"{reduction}{'' if factor is None else ' scaled'}"
                truth = reduced(terms, reduction)
                accuracy.add(f"value {mark}", values[0], plain_values[0], truth)
                truth = slopes * spread(upstream.to(sums), shape, reduction)
                accuracy.add(f"gradient {mark}", grads[0], plain_grads[0], truth)
    accuracy.check()


def test_the_truth_is_torchs():
    x, target, (terms, slopes) = case((41, 401), torch.float64, "own", True)
    values, grads = call(lambda x: eager(x, target, "sum", True), [x])
    assert values[0].item() == pytest.approx(float(terms.sum()), rel=1e-12)
    torch.testing.assert_close(grads[0], torch.tensor(slopes.astype(float)), rtol=1e-9, atol=1e-15)


# --- targets -------------------------------------------------------------------------------------


@INPUTS
def test_byte_targets_are_the_float_targets(implementation, from_logits):
    """x / 255 for all 256 of them, to the last bit of value and gradient."""
    x = torch.linspace(-8, 8, 256).repeat(3, 1)
    x = (x if from_logits else torch.sigmoid(x)).to(implementation)
    byte = torch.arange(256, dtype=torch.uint8, device=implementation).repeat(3, 1)
    for target in (byte, byte > 99):
        # By way of double: on a GPU torch divides by multiplying, and may lose the last bit.
        as_float = (target.double() / (255 if target.dtype == torch.uint8 else 1)).float()
        for reduction in REDUCTIONS:
            got, want = (
                call(
                    lambda x, t=t, r=reduction: bernoulli_nll(
                        x, t, reduction=r, from_logits=from_logits
                    ),
                    [x],
                )
                for t in (target, as_float)
            )
            assert torch.equal(got[0][0], want[0][0])
            assert torch.equal(got[1][0], want[1][0])


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_mixed_dtypes(backend, dtype, target_dtype):
    x = (torch.randn(9, 33) * 3).to(dtype)
    target = torch.rand(9, 33).to(target_dtype)
    values, grads = call(lambda x: bernoulli_nll(x, target, reduction="none"), [x])
    assert grads[0].dtype == dtype
    assert values[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    terms, slopes = bernoulli_terms(x, target, True)
    assert values[0].numpy() == pytest.approx(terms.sum(1).astype(float), rel=1e-5)
    torch.testing.assert_close(grads[0], torch.tensor(slopes.astype(float)).to(dtype))


@INPUTS
def test_gradient_of_the_target(backend, dtype, from_logits, reduction):
    # In half precision too all is computed in float32, and rounded once.
    tolerance = {"rtol": max(1e-5, torch.finfo(dtype).eps), "atol": 1e-6}
    x = torch.randn(6, 11) * 2
    x = (x if from_logits else torch.sigmoid(x)).to(dtype)
    target = torch.rand(6, 11).to(dtype)
    upstream = torch.rand(6) + 0.5 if reduction == "none" else torch.tensor(2.5)

    def op(logits, goal):
        return bernoulli_nll(logits, goal, reduction=reduction, from_logits=from_logits)

    def plain(logits, goal):
        return eager(logits, goal, reduction, from_logits)

    sums = torch.float64 if dtype == torch.float64 else torch.float32
    _, got = call(op, [x, target], [upstream.to(sums)])
    _, want = call(plain, [x.double(), target.double()], [upstream.double()])
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g, w.to(dtype), **tolerance)


# --- layouts -------------------------------------------------------------------------------------


def same(a, b, message):
    """To the bit in our kernels; plain PyTorch sums other layouts in another order."""
    if vae_fast.get_backend() == "native":
        assert torch.equal(a, b), message
    else:
        torch.testing.assert_close(a, b, msg=message)


@pytest.mark.parametrize("target_kind", ["own", "uint8", "bool"])
def test_layouts(backend, dtype, target_kind, reduction):
    x, target, _ = case((41, 401), dtype, target_kind, True)

    def values_and_grads(x, target):
        return call(lambda x: bernoulli_nll(x, target, reduction=reduction), [x])

    (want,), (want_grad,) = values_and_grads(x, target)
    for name, view in layouts(x).items():
        for target_view in (target, layouts(target)[name], layouts(target)["transposed"]):
            (got,), (got_grad,) = values_and_grads(view, target_view)
            same(got, want, name)
            same(got_grad, want_grad, name)


@pytest.mark.parametrize("target_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_last(backend, target_format, reduction):
    x, target = torch.randn(5, 3, 6, 7), torch.rand(5, 3, 6, 7)
    (want,), (want_grad,) = call(lambda x: bernoulli_nll(x, target, reduction=reduction), [x])
    last = x.contiguous(memory_format=torch.channels_last)
    goal = target.contiguous(memory_format=target_format)
    (got,), (grad,) = call(lambda x: bernoulli_nll(x, goal, reduction=reduction), [last])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grad, want_grad)


def test_expanded_inputs(backend, reduction):
    """One row of logits for all samples, and one target: gradients add up in the row."""
    row, target = torch.randn(1, 37), torch.rand(1, 37)

    def loss(row, fn, dtype):
        return fn(row.expand(6, 37), target.to(dtype).expand(6, 37))

    got, (grad,) = call(
        lambda r: loss(r, lambda *a: bernoulli_nll(*a, reduction=reduction), torch.float32), [row]
    )
    want, (want_grad,) = call(
        lambda r: loss(r, lambda *a: eager(*a, reduction, True), torch.float64), [row.double()]
    )
    torch.testing.assert_close(got[0], want[0].float())
    torch.testing.assert_close(grad, want_grad.float())


@INPUTS
def test_inputs_are_never_written_to(backend, from_logits, reduction):
    x, target = torch.rand(5, 40), torch.rand(5, 40)
    upstream = torch.rand(5) if reduction == "none" else torch.rand(())
    before = x.clone(), target.clone(), upstream.clone()
    call(
        lambda x, t: bernoulli_nll(x, t, reduction=reduction, from_logits=from_logits),
        [x, target],
        [upstream],
    )
    for t, b in zip((x, target, upstream), before, strict=True):
        assert torch.equal(t, b)


# --- upstream gradients --------------------------------------------------------------------------


def upstreams(n: int) -> dict[str, torch.Tensor]:
    values = torch.rand(n) * 4 - 2
    strided = torch.zeros(n, 3)[:, 1].copy_(values)
    return {
        "unequal": values,
        "expanded": torch.tensor(1.7).expand(n),
        "sliced": strided,
        "reversed": values.flip(0),
        "zeros": torch.zeros(n),
    }


@pytest.mark.parametrize("kind", upstreams(1))
def test_unequal_upstream_gradients(backend, kind):
    upstream = upstreams(6)[kind]
    x, target = torch.randn(6, 50), torch.rand(6, 50)
    _, (grad,) = call(lambda x: bernoulli_nll(x, target, reduction="none"), [x], [upstream])
    slopes = torch.sigmoid(x.double()) - target.double()
    torch.testing.assert_close(grad, (slopes * upstream.double()[:, None]).float())


def test_sum_of_the_per_sample_losses(backend):
    """.sum() sends an expanded gradient of stride 0."""
    x, target = torch.randn(6, 50, requires_grad=True), torch.rand(6, 50)
    bernoulli_nll(x, target, reduction="none").sum().backward()
    torch.testing.assert_close(x.grad, torch.sigmoid(x.detach()) - target)


def test_backward_twice(backend, reduction):
    """The second call gives the same gradient, even if the first result was overwritten."""
    x, target = torch.randn(6, 50, requires_grad=True), torch.rand(6, 50)
    loss = bernoulli_nll(x, target, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad.mul_(100)
    x.grad = None
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, first)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)


def test_a_gradient_handed_out_is_not_read_again(backend, reduction):
    x, target = torch.randn(6, 50, requires_grad=True), torch.rand(6, 50)
    loss = bernoulli_nll(x, target, reduction=reduction).sum()
    (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
    want = grad.clone()
    grad.mul_(100)
    assert torch.equal(torch.autograd.grad(loss, x)[0], want)


def test_gradients_accumulate_in_the_leaf(backend, reduction):
    x, target = torch.randn(6, 50, requires_grad=True), torch.rand(6, 50)
    for factor in (1.0, 3.0):
        (factor * bernoulli_nll(x, target, reduction=reduction).sum()).backward()
    scale = 6 if reduction == "batchmean" else 1
    torch.testing.assert_close(x.grad, 4 * (torch.sigmoid(x.detach()) - target) / scale)


def test_loss_used_twice(backend, reduction):
    x, target = torch.randn(6, 50, requires_grad=True), torch.rand(6, 50)
    loss = bernoulli_nll(x, target, reduction=reduction)
    (loss.sum() * 2 + (3 * loss).sum()).backward()
    scale = 6 if reduction == "batchmean" else 1
    torch.testing.assert_close(x.grad, 5 * (torch.sigmoid(x.detach()) - target) / scale)


@INPUTS
def test_loss_scale_saves_small_gradients(backend, from_logits):
    """float16 gradients below 6e-8 are 0: a loss scale must act before they are rounded."""
    x = torch.full((4096, 8), 5.0)
    x = (x if from_logits else torch.sigmoid(x)).half()
    target = torch.ones(4096, 8)
    _, (grad,) = call(
        lambda x: bernoulli_nll(x, target, reduction="batchmean", from_logits=from_logits),
        [x],
        [torch.tensor(2.0**14)],
    )
    want = 4 * bernoulli_terms(x, target, from_logits)[1]
    torch.testing.assert_close(grad, torch.tensor(want.astype(float)).half(), rtol=1e-3, atol=0)


def test_double_backward_in_plain_pytorch():
    """The reference either raises or is right; it is right."""
    x, target = torch.rand(4, 9, dtype=torch.float64), torch.rand(4, 9, dtype=torch.float64)
    for from_logits in (True, False):

        def loss(x, from_logits=from_logits):
            spec = BERNOULLI if from_logits else BERNOULLI_PROBS
            return reference.nll(spec, [x], target)

        assert torch.autograd.gradgradcheck(loss, (x.clone().requires_grad_(),))


@pytest.mark.skipif(native_reason("cpu") is not None, reason="the native library is not built")
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_double_backward_of_the_native_op(reduction):
    """It takes a few ops, goes to any order, and is right where a sigmoid rounds to 1."""
    x = torch.tensor([[-30.0, -2, 0.3], [1.5, 20, 37]], dtype=torch.float64).requires_grad_()
    target = torch.tensor([[0, 51, 255], [102, 255, 0]], dtype=torch.uint8)

    def loss(x, weight):
        return bernoulli_nll(x, target, reduction=reduction) * weight

    weight = torch.tensor([0.7, 1.3] if reduction == "none" else 0.7, dtype=torch.float64)
    weight.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (slope,) = torch.autograd.grad(loss(x, weight).sum(), x, create_graph=True)
    scale = 0.5 if reduction == "batchmean" else 1.0
    rows = scale * weight.detach().expand(2).unsqueeze(1)
    p, q = torch.sigmoid(x).detach(), torch.sigmoid(-x).detach()
    t = target / 255
    torch.testing.assert_close(slope.detach(), rows * ((1 - t) * p - t * q), rtol=1e-6, atol=0)
    curved, of_weight = torch.autograd.grad(
        slope.cos().sum(), (x, weight), retain_graph=True, create_graph=True
    )
    wanted = -slope.sin() * rows * p * q
    torch.testing.assert_close(curved, wanted, rtol=1e-6, atol=0)
    each = (-slope.sin() * scale * ((1 - t) * p - t * q)).sum(1)
    torch.testing.assert_close(of_weight, each if reduction == "none" else each.sum())
    (third,) = torch.autograd.grad(curved.sum(), x)
    with vae_fast.set_backend("reference"):
        (slope,) = torch.autograd.grad(loss(x, weight).sum(), x, create_graph=True)
        (curved,) = torch.autograd.grad(slope.cos().sum(), x, create_graph=True)
        torch.testing.assert_close(third, torch.autograd.grad(curved.sum(), x)[0])
    torch.autograd.gradgradcheck(loss, (x.detach().requires_grad_(), weight))


# --- extremes ------------------------------------------------------------------------------------


def test_extreme_logits(implementation, dtype):
    large = 1e4 if dtype != torch.float16 else 6e4
    x = torch.tensor([large, -large, large, -large, 0.0, 0.0, 80.0, -80.0], dtype=dtype)
    target = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0], dtype=dtype)
    x, target = x[:, None], target[:, None]
    terms, slopes = bernoulli_terms(x, target, True)
    values, grads = call(
        lambda x: bernoulli_nll(x, target.to(implementation), reduction="none"),
        [x.to(implementation)],
    )
    # The terms log(1 + exp(-|x|)) of many elements are one logarithm in the kernels, and so are held
    # to float32's epsilon, as plain PyTorch holds them for some signs of x.
    double = dtype == torch.float64
    native = vae_fast.get_backend() == "native"
    tight = {"rtol": 1e-15, "atol": 1e-30} if double else {"rtol": 1e-6, "atol": 1.2e-7}
    want = torch.tensor(terms[:, 0].astype(float)).to(values[0])
    torch.testing.assert_close(values[0], want, **tight)
    want = torch.tensor(slopes.astype(float)).to(grads[0])
    loose = {
        "rtol": 3 * torch.finfo(dtype).eps,
        "atol": torch.finfo(dtype).tiny if native else max(torch.finfo(dtype).tiny, 1e-30),
    }
    torch.testing.assert_close(grads[0], want, **loose)


@pytest.mark.parametrize("length", [5_000, 9_000, 20_000, 70_000])
def test_long_rows_of_undecided_logits(implementation, length):
    """At logit 0 a term is log 2, the most that log(1 + e) can be: a product of 1 + e that is kept
    for too long overflows first here. A row of `reduction="none"` is as long as a product can get.
    """
    x = torch.zeros(2, length, device=implementation, requires_grad=True)
    target = torch.ones(2, length, dtype=torch.uint8, device=implementation)
    expected = torch.full((2,), length * 0.6931471805599453)
    nll = bernoulli_nll(x, target, reduction="none")
    torch.testing.assert_close(nll.cpu(), expected, rtol=1e-6, atol=0.0)
    with torch.no_grad():  # the value alone is another kernel
        nll = bernoulli_nll(x, target, reduction="none")
    torch.testing.assert_close(nll.cpu(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_are_rounded_to_even(cpu_level, half):
    """At a logit so high that the slope is 1, the gradient is the upstream one, rounded once."""
    info = torch.finfo(half)
    step = info.smallest_normal * info.eps  # between subnormal numbers
    ties = [1 + info.eps / 2, 1 + 3 * info.eps / 2, 2 - info.eps / 2, step / 2, 3 * step / 2]
    near = [1 + 0.51 * info.eps, 1 + 0.49 * info.eps, 0.51 * step, info.smallest_normal - step / 2]
    ends = [
        info.max,
        *(info.max * (1 + info.eps * part) for part in (0.125, 0.25, 4)),
        float("inf"),
    ]
    upstream = torch.tensor([*ties, *near, *ends], dtype=torch.float64).float()
    # A NaN with all bits set: rounding its bits as a number's would carry into the sign.
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    upstream = torch.cat([upstream, -upstream, nan])[:, None].expand(-1, 19)  # bodies and tails
    for rows in upstream.split(1):
        x = torch.full((1, 19), 3e4, dtype=half, requires_grad=True)
        bernoulli_nll(x, torch.zeros_like(x), reduction="none").backward(rows[:, 0])
        torch.testing.assert_close(x.grad, rows.to(half), rtol=0.0, atol=0.0, equal_nan=True)


def test_infinite_logits(implementation, dtype):
    """Confident and wrong is infinitely bad. (F.binary_cross_entropy_with_logits may say NaN.)"""
    inf = float("inf")
    x = torch.tensor([[inf], [-inf]], dtype=dtype, device=implementation)
    wrong = torch.tensor([[0.0], [1.0]], dtype=dtype, device=implementation)
    (value,), (grad,) = call(lambda x: bernoulli_nll(x, wrong, reduction="none"), [x])
    if vae_fast.get_backend() == "native":
        assert value.tolist() == [inf, inf]
    assert not value.isfinite().any()
    assert grad.tolist() == [[1.0], [-1.0]]
    (value,), _ = call(lambda x: bernoulli_nll(x, 1 - wrong, reduction="none"), [x])
    assert not value.isinf().any() and (value.isnan() | (value == 0)).all()  # inf * 0, or its limit
    (total,), _ = call(lambda x: bernoulli_nll(x, wrong), [x])
    assert not total.isfinite()


@INPUTS
@pytest.mark.parametrize("where", ["logits", "target"])
def test_nan_propagates(implementation, dtype, where, from_logits, reduction):
    """One NaN, in a vector's body and in a tail, reaches its sample's loss and its gradient."""
    for position in (0, 100, 402):
        x = torch.full((3, 403), 0.25, dtype=dtype)
        target = torch.full((3, 403), 0.5, dtype=dtype)
        (x if where == "logits" else target)[1, position] = float("nan")
        x, target = x.to(implementation), target.to(implementation)
        (value,), (grad,) = call(
            lambda x, t=target: bernoulli_nll(x, t, reduction=reduction, from_logits=from_logits),
            [x],
        )
        assert value.isnan().tolist() == ([False, True, False] if reduction == "none" else True)
        assert grad.isnan().nonzero().tolist() == [[1, position]]


@pytest.mark.parametrize("target_kind", ["own", "uint8", "bool"])
def test_probabilities_of_exactly_0_and_1(implementation, dtype, target_kind):
    """Finite, by F.binary_cross_entropy's clamps: -100 in the logarithm, 1e-12 in the gradient."""
    p = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype, device=implementation)[:, None]
    target = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype, device=implementation)[:, None]
    if target_kind == "uint8":
        target = (target * 255).to(torch.uint8)
    elif target_kind == "bool":
        target = target.bool()
    (value,), (grad,) = call(
        lambda p: bernoulli_nll(p, target, reduction="none", from_logits=False), [p]
    )
    assert value.tolist() == [0.0, 100.0, 100.0, 0.0]
    want = torch.tensor([0.0, -1e12, 1e12, 0.0], dtype=torch.float64)[:, None].to(dtype)
    torch.testing.assert_close(grad.cpu(), want, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_probabilities_match_torch(backend, reduction):
    p, target = torch.rand(12, 45), torch.rand(12, 45)
    p[0, :4] = torch.tensor([0.0, 1.0, 1e-45, 1e-20])
    (got,), (grad,) = call(
        lambda p: bernoulli_nll(p, target, reduction=reduction, from_logits=False), [p]
    )
    (want,), (want_grad,) = call(lambda p: eager(p, target, reduction, False), [p])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grad, want_grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [-0.01, 1.5, -float("inf"), float("inf")])
def test_probabilities_and_targets_outside_0_to_1_raise_as_torchs_do(backend, dtype, bad):
    good, off = torch.rand(5, 40).to(dtype), torch.rand(5, 40).to(dtype)
    off[2, 31] = bad
    mu = torch.zeros(5, 2)
    calls = [
        lambda p, t: bernoulli_nll(p, t, reduction="none", from_logits=False),
        lambda p, t: bernoulli_nll(p.clone().requires_grad_(), t, from_logits=False),
        lambda p, t: vae_fast.bce_kl_loss(p, t, mu, mu, from_logits=False),
        lambda p, t: vae_fast.loss_function(t, p, mu, mu),
    ]
    for call_ in calls:
        with pytest.raises(RuntimeError, match="of probabilities must be between 0 and 1"):
            call_(off, good)
        with pytest.raises(RuntimeError, match="of target must be between 0 and 1.*Scale the data"):
            call_(good, off)


@INPUTS
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (0, 3, 4)], ids=str)
def test_empty(implementation, dtype, shape, from_logits, reduction):
    x = torch.zeros(shape, dtype=dtype, device=implementation)
    target = torch.zeros(shape, dtype=torch.uint8, device=implementation)
    (value,), (grad,) = call(
        lambda x: bernoulli_nll(x, target, reduction=reduction, from_logits=from_logits), [x]
    )
    assert grad.shape == shape and grad.dtype == dtype
    if reduction == "none":
        assert value.tolist() == ([0.0] * shape[0] if len(shape) > 1 else 0.0)
    elif reduction == "batchmean" and len(shape) > 1 and shape[0] == 0:
        assert value.isnan()  # a mean over no samples
    else:
        assert value.item() == 0.0


def test_scalar(backend):
    x, target = torch.tensor(0.3), torch.tensor(1.0)
    (value,), (grad,) = call(lambda x: bernoulli_nll(x, target, reduction="none"), [x])
    assert value.shape == () and grad.shape == ()
    assert value.item() == pytest.approx(0.5543552444685271, rel=1e-6)
    assert grad.item() == pytest.approx(-0.425557483188341, rel=1e-6)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.uint8])
def test_large_gradients_go_past_the_caches_and_have_the_same_bits(native, target_dtype, shift):
    """From 32 MiB on, aligned gradients bypass the caches. At ``shift`` 3 they are not aligned."""
    rows, columns = 1 << 10, (1 << 13) + 5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, columns, generator=generator)
    target = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    target = target if target_dtype == torch.uint8 else target / 255
    memory = torch.full((rows * columns + 16,), 7.0)
    grad = memory[shift : shift + rows * columns].view(rows, columns)
    op = torch.ops.vae_fast.bernoulli_nll_with_grad_out
    nll = op([logits], target, 1, 0.5, [grad])
    parts = torch.empty_like(grad[:128])
    total = 0.0
    for begin in range(0, rows, 128):
        some = slice(begin, begin + 128)
        total += op([logits[some]], target[some], 1, 0.5, [parts]).item()
        assert torch.equal(grad[some], parts)
    assert nll.item() == pytest.approx(total, rel=1e-6)
    assert (memory[:shift] == 7.0).all() and (memory[shift + rows * columns :] == 7.0).all()
    # Each sample alone, its first element anywhere in a cache line.
    upstream = torch.full((rows,), 0.5)
    (apart,) = torch.ops.vae_fast.bernoulli_nll_backward(upstream, [logits], target, 0, 1)
    assert torch.equal(apart, grad)
