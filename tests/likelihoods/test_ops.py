"""Every likelihood's op, through the public functions: generated from the list, for each Spec.

The formulas by themselves stand in test_formulas.py. Here the drivers are in between: memory, threads,
sums, dtypes, and what parameters may share. Values and gradients of single elements are held to the
project's bar at every SIMD level; how elements come together is held to float64.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import NATIVE

if not NATIVE:
    pytest.skip("the kernels are not built", allow_module_level=True)
import vae_fast
from tests.conftest import LEVELS, level
from tests.likelihoods.test_formulas import case
from vae_fast import reference
from vae_fast.functional.likelihood import TARGETS
from vae_fast.likelihoods import SPECS, Spec
from vae_fast.ops import likelihood as native_ops

SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
ELEMENTS = [spec for spec in SPECS.values() if not spec.planes]
OF_ELEMENTS = pytest.mark.parametrize("spec", ELEMENTS, ids=[spec.name for spec in ELEMENTS])
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}

pytestmark = pytest.mark.usefixtures("native")


# --- what is compared ----------------------------------------------------------------------------


def inputs(spec: Spec, shape: tuple[int, ...], dtype=torch.float32) -> tuple[list[Tensor], Tensor]:
    params, x = spec.inputs(shape, dtype, torch.Generator().manual_seed(sum(shape)))
    return params, x


def shapes(spec: Spec) -> list[tuple[int, ...]]:
    """One element, a vector and a bit, many rows, rows of more than a chunk, and nothing."""
    if spec.planes == 3:
        return [(1, 3, 1, 1), (2, 3, 5, 7), (1, 3, 33, 41), (0, 3, 2, 2), (2, 3, 0, 2)]
    if spec.planes:
        return [(1,), (37,), (4, 3, 5), (2, 1100), (0, 5), (5, 0)]
    return [(1,), (19,), (1, 1), (3, 4, 5), (41, 129), (2, 5000), (0, 5), (5, 0)]


def call(spec: Spec, params, target, reduction="sum", upstream=None) -> list[Tensor]:
    """The value and the gradient by each parameter that is a tensor."""
    leaves = [p.detach().requires_grad_() if isinstance(p, Tensor) else p for p in params]
    value = vae_fast.nll(spec.name, leaves, target, reduction=reduction)
    wanted = [p for p in leaves if isinstance(p, Tensor)]
    return [value.detach(), *torch.autograd.grad(value, wanted, upstream)]


def truth(spec: Spec, params, target, reduction="sum", upstream=None) -> list[Tensor]:
    """The same by the reference in float64; numbers that overflow the result's dtype stay finite."""
    wide = [p.double() if isinstance(p, Tensor) else p for p in params]
    upstream = None if upstream is None else upstream.double()
    with vae_fast.set_backend("reference"):
        return call(spec, wide, target, reduction, upstream)


def same(results: list[Tensor], expected: list[Tensor], what: object = "") -> None:
    """Equal to a few units of the largest: enough to see an element in a wrong place."""
    assert len(results) == len(expected)
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        assert a.shape == b.shape, (what, i)
        if a.numel() == 0:
            continue
        limit, tolerance = torch.finfo(a.dtype).max, TOLERANCE[a.dtype]
        a, b = (t.double().clamp(-limit, limit) for t in (a, b))
        scale = float(b.nan_to_num().abs().max())
        torch.testing.assert_close(
            a,
            b,
            rtol=10 * tolerance,
            atol=tolerance * scale + 1e-30,
            equal_nan=True,
            msg=functools.partial("{}, result {}: {}".format, what, i),
        )


def upstream_of(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    dtype = torch.promote_types(dtype, torch.float32)
    return torch.linspace(-1.5, 2.0, max(1, shape.numel()), dtype=dtype)[: shape.numel()].view(
        shape
    )


# --- accuracy ------------------------------------------------------------------------------------


@SPEC
def test_accuracy(spec):
    """Each element's value and gradients at every SIMD level, against 100 digits, at the bar."""
    for dtype in TOLERANCE:
        c = case(spec.name, dtype, 80 if dtype.itemsize > 2 else 40)
        params, x = c.params, c.x
        if spec.target == "category":
            x = x.long()
        if not spec.planes:  # a row for each element, so that its value is seen
            params, x = [p.unsqueeze(1) for p in params], x.unsqueeze(1)
        for name in LEVELS:
            with level(name):
                upstream = torch.ones(len(x), dtype=c.eager[0].dtype)
                value, *grads = call(spec, params, x, "none", upstream)
            assert all(g.dtype == dtype for g in grads)
            shaped = [g.view(e.shape) for g, e in zip(grads, c.eager[1:], strict=True)]
            value = value.view(c.eager[0].shape)
            if spec.name == "bernoulli":
                # A sum of logarithms as one of a product: to 1e-16 nats, however small it is.
                off = np.abs(value.double().numpy() - c.truth[0].astype(float))
                value = torch.where(torch.from_numpy(off) < 2e-16, c.eager[0], value)
            c.check(f"{spec.name}, {dtype}, {name}", [value, *shaped])
            for grads in side_by_side(spec, c.params, c.x, 3 if len(c.x) > 30 else 20):
                c.check(f"{spec.name}, {dtype}, {name}, side by side", [value, *grads])


def side_by_side(spec: Spec, params: list[Tensor], x: Tensor, copies=3) -> list[list[Tensor]]:
    """Gradients of ``copies`` of the elements (or positions), one after another in a single row.

    The kernels take several vectors of a row at once. Returns the gradients of each copy.
    """
    if spec.target == "category":
        x = x.long()

    def in_a_row(t: Tensor) -> Tensor:  # (N, ...) -> (1, ..., copies * N)
        t = t.flatten(1) if t.dim() > 1 else t
        return torch.cat([t.movedim(0, -1)] * copies, -1)[None]

    grads = call(spec, [in_a_row(p) for p in params], in_a_row(x))[1:]
    each = [g[0].movedim(-1, 0).chunk(copies) for g in grads]
    return [
        [g.reshape(p.shape) for g, p in zip(copy, params, strict=True)]
        for copy in zip(*each, strict=True)
    ]


# --- sums, shapes, dtypes ------------------------------------------------------------------------


@SPEC
def test_reductions_and_unequal_upstream_gradients(spec):
    for shape, dtype in itertools.product(shapes(spec), (torch.float32, torch.float64)):
        if dtype == torch.float64 and math.prod(shape) > 5000:
            continue
        params, x = inputs(spec, shape, dtype)
        leaves = [p.double().requires_grad_() for p in params]
        terms = reference.nll_terms(spec, leaves, x)
        slopes = torch.autograd.grad(terms.sum(), leaves)
        rows = terms.detach().reshape(len(x), -1) if len(x) and terms.numel() else None
        if len(shape) < 2 and not spec.planes:  # one sample
            rows = None if rows is None else rows.view(1, -1)
        n = shape[0] if len(shape) >= 2 or spec.planes else 1
        sums = torch.zeros(n, dtype=torch.float64) if rows is None else rows.sum(1)
        for reduction in ("none", "sum", "batchmean"):
            value = sums if reduction == "none" else sums.sum()
            if reduction == "batchmean":
                value = value / n if n else value * torch.nan
            if reduction == "none" and n == 1 and len(shape) == 1 and not spec.planes:
                value = value.view(())
            upstream = upstream_of(value.shape, dtype)
            spread = upstream.double() / (max(1, n) if reduction == "batchmean" else 1)
            if spread.dim():
                spread = spread.view(-1, *[1] * (slopes[0].dim() - 1))
            what = (shape, dtype, reduction)
            expected = [value, *[spread * s for s in slopes]]
            same(call(spec, params, x, reduction, upstream), expected, what)
            if value.dim() == 0:  # the gradients that forward made
                expected[1:] = [e / upstream.double() for e in expected[1:]]
                same(call(spec, params, x, reduction), expected, what)


@SPEC
def test_half_precision_and_expanded_gradients(spec):
    """The sums' gradients are torch's expanded ones; half precision is widened, and rounded once."""
    for dtype in (torch.bfloat16, torch.float16):
        params, x = inputs(spec, (5, 3, 31) if spec.planes != 3 else (3, 3, 5, 3), dtype)
        leaves = [p.clone().requires_grad_() for p in params]
        value = vae_fast.nll(spec.name, leaves, x, reduction="none")
        assert value.dtype == torch.float32
        grads = torch.autograd.grad(value.sum(), leaves)
        expected = truth(spec, params, x, "none", torch.ones_like(value))
        same([value.detach(), *grads], expected, dtype)
        # A loss scale arrives before the gradient is rounded.
        scaled = call(spec, params, x, "sum", torch.tensor(1 / 1024))
        same(scaled[1:], [g / 1024 for g in expected[1:]], dtype)


@SPEC
def test_targets_of_every_dtype_that_fits(spec):
    shape = (6, 3, 27) if spec.planes != 3 else (3, 3, 4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        params, x = inputs(spec, shape, dtype)
        for of_target in TARGETS[spec.target][0]:
            if dtype == torch.bfloat16 and of_target not in (dtype, torch.uint8, torch.float32):
                continue
            if of_target in (torch.uint8, torch.bool) and spec.target in ("unit", "real"):
                kept = torch.arange(x.numel()).view(x.shape).remainder(256)
                kept = kept.to(torch.uint8) if of_target == torch.uint8 else kept > 100
                plain = kept.double() / (255 if of_target == torch.uint8 else 1)
            else:
                top = torch.finfo if of_target.is_floating_point else torch.iinfo
                largest = 1 if of_target == torch.bool else top(of_target).max
                kept = x.double().clamp(-largest, largest).to(of_target)
                plain = kept if spec.target == "category" else kept.double()
            reduction = "none"
            value = vae_fast.nll(spec.name, params, kept, reduction=reduction)
            upstream = upstream_of(value.shape, value.dtype)
            same(
                call(spec, params, kept, reduction, upstream),
                truth(spec, params, plain, reduction, upstream),
                (dtype, of_target),
            )


# --- parameters ----------------------------------------------------------------------------------

FORMS = {
    "full": lambda p: p,
    "per channel": lambda p: p[:1, :, :1].squeeze(0).clone(),
    "per row": lambda p: p[:, :1, :1].clone(),
    "per column": lambda p: p[0, 0].clone(),
    "of one sample": lambda p: p[:1].clone(),
    "per row and channel": lambda p: p[:, :, :1].clone(),
    "per row and column": lambda p: p[:, :1].clone(),
    "one for all": lambda p: p[0, 0, 0].clone(),
    "a number": lambda p: float(p[0, 0, 0]),
}


@OF_ELEMENTS
def test_shared_parameters(spec):
    """What rows, channels or all elements share has the gradient that its uses sum up to."""
    if spec.family == "bernoulli":
        with pytest.raises(ValueError, match="must be equal"):
            vae_fast.nll(spec.name, torch.zeros(3, 1), torch.zeros(3, 4))
        return
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        params, x = inputs(spec, (4, 3, 41 if dtype == torch.float32 else 5), dtype)
        for which, form in itertools.product(range(len(params)), FORMS):
            if dtype != torch.float32 and form not in ("per channel", "one for all"):
                continue
            mixed = [FORMS[form](p) if j == which else p for j, p in enumerate(params)]
            if not any(isinstance(p, Tensor) for p in mixed):  # a number alone has no dtype
                continue
            reduction = "sum" if which else "none"
            value = vae_fast.nll(spec.name, mixed, x, reduction=reduction)
            upstream = upstream_of(value.shape, value.dtype)
            same(
                call(spec, mixed, x, reduction, upstream),
                truth(spec, mixed, x, reduction, upstream),
                (dtype, which, form, reduction),
            )
        only_first = [params[0], *[FORMS["per column"](p) for p in params[1:]]]
        same(call(spec, only_first, x), truth(spec, only_first, x), (dtype, "all but the first"))
    # One value per column, like genes' dispersions: many rows, in several pieces.
    params, x = inputs(spec, (40, 300))
    params[-1] = params[-1][0].clone()
    same(call(spec, params, x), truth(spec, params, x), "many rows")


@OF_ELEMENTS
def test_stacked_parameters(spec):
    """(N, params * C, ...), as a decoder gives them: the separate ones' bits."""
    for dtype, shape in itertools.product(TOLERANCE, ((3, 5), (4, 3, 37), (2, 1, 5000))):
        params, x = inputs(spec, shape, dtype)
        stacked = torch.cat(params, 1)
        for reduction in ("none", "batchmean"):
            rows = shape[:1] if reduction == "none" else ()
            upstream = torch.ones(rows, dtype=torch.promote_types(dtype, torch.float32))
            value, grad = call(spec, [stacked], x, reduction, upstream)
            apart, *grads = call(spec, params, x, reduction, upstream)
            same([value], [apart.double()], (dtype, shape, reduction))
            assert torch.equal(grad, torch.cat(grads, 1)), (dtype, shape, reduction)
    sliced = torch.cat([stacked, stacked], 1)[:, : stacked.shape[1]]
    same(call(spec, [sliced], x), [t.double() for t in call(spec, [stacked], x)])


@OF_ELEMENTS
def test_sets_of_samples(spec):
    """K sets of parameters against one target, (K, N)."""
    params, x = inputs(spec, (6, 3, 11))
    params, x = [p.view(3, 2, 3, 11) for p in params], x[:2].contiguous()
    leaves = [p.clone().requires_grad_() for p in params]
    value = native_ops.nll(spec, leaves, x, native_ops.NONE)
    upstream = upstream_of(value.shape, value.dtype)
    grads = torch.autograd.grad(value, leaves, upstream)
    for k in range(3):
        expected = truth(spec, [p[k] for p in params], x, "none", upstream[k])
        same([value[k].detach(), *[g[k] for g in grads]], expected, k)


@SPEC
def test_layouts(spec):
    """Transposed, strided, inside a margin, channels last: the contiguous copy's result."""
    params, x = inputs(spec, (4, 3, 6, 5))
    expected = truth(spec, params, x, "none", upstream_of(torch.Size([4]), torch.float64))

    def inside(t):
        wide = t.new_zeros([n + 2 for n in t.shape])
        view = wide[tuple(slice(1, -1) for _ in t.shape)]
        return view.copy_(t)

    def strided(t):
        return t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t)

    def transposed(t):
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)

    def channels_last(t):
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    for change in (inside, strided, transposed, channels_last):
        for of_params, of_target in ((True, True), (True, False), (False, True)):
            moved = [change(p) if of_params else p for p in params]
            target = change(x) if of_target else x
            upstream = upstream_of(torch.Size([4]), torch.float32)
            same(
                call(spec, moved, target, "none", upstream),
                expected,
                (change.__name__, of_params, of_target),
            )


# --- what may not change a result ----------------------------------------------------------------


@SPEC
def test_threads_change_no_bit_and_inputs_are_only_read(spec, threads):
    big = (3, 3, 60, 61) if spec.planes == 3 else (4, 1500) if spec.planes else (7, 5003)
    for dtype in (torch.float32, torch.bfloat16):
        params, x = inputs(spec, big, dtype)
        if len(params) > 1:
            params[1] = params[1][0].clone()  # shared by the rows
        before = [t.clone() for t in (*params, x)]
        results = []
        for n in (1, 2, 3):
            threads(n)
            ours = []
            for reduction in ("sum", "none"):
                upstream = torch.ones(big[:1] if reduction == "none" else ())
                ours += call(spec, params, x, reduction, upstream)
            results.append(ours)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), dtype
        for t, was in zip((*params, x), before, strict=True):
            assert torch.equal(t, was) and t._version == 0


@SPEC
def test_nan_goes_through(spec):
    params, x = inputs(spec, (4, 3, 9) if spec.planes != 3 else (4, 3, 3, 3))
    targets = [] if not x.is_floating_point() else [len(params)]
    for which in [*range(len(params)), *targets]:
        tensors = [t.clone() for t in (*params, x)]
        tensors[which][2].view(-1)[0] = float("nan")
        value = vae_fast.nll(spec.name, tensors[:-1], tensors[-1], reduction="none")
        assert value.isnan().tolist() == [False, False, True, False], which
        assert vae_fast.nll(spec.name, tensors[:-1], tensors[-1]).isnan()


# --- autograd ------------------------------------------------------------------------------------


@SPEC
def test_second_derivatives_are_plain_pytorchs(spec):
    params, x = inputs(spec, (3, 4, 2) if spec.planes != 3 else (2, 3, 2, 1), torch.float64)
    results = []
    for backend in ("native", "reference"):
        with vae_fast.set_backend(backend):
            leaves = [p.clone().requires_grad_() for p in params]
            value = vae_fast.nll(spec.name, leaves, x)
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            results.append(torch.autograd.grad(sum((g * g).sum() for g in grads), leaves))
    same(list(results[0]), list(results[1]))


@SPEC
def test_only_the_gradients_that_are_wanted(spec):
    params, x = inputs(spec, (3, 4) if spec.planes != 3 else (2, 3, 2, 2))
    _, *grads = call(spec, params, x)
    for which, p in enumerate(params):
        leaf = p.clone().requires_grad_()
        own = [leaf if j == which else q for j, q in enumerate(params)]
        vae_fast.nll(spec.name, own, x).backward()
        assert torch.equal(leaf.grad, grads[which])
    # A gradient is handed out once: writing to it does not reach a second backward.
    leaves = [p.clone().requires_grad_() for p in params]
    value = vae_fast.nll(spec.name, leaves, x)
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    for g in first:
        g.zero_()
    same(list(torch.autograd.grad(value, leaves)), [g.double() for g in grads])


@SPEC
def test_elbo_is_the_sum_of_its_terms(spec):
    params, x = inputs(spec, (4, 3, 5) if spec.planes != 3 else (4, 3, 3, 2))
    mu, logvar = torch.randn(4, 6), 0.5 * torch.randn(4, 6)
    forms = [params]
    if len(params) > 1:
        forms += [[torch.cat(params, 1)], [params[0], *[p[0].clone() for p in params[1:]]]]
    for form, reduction in itertools.product(forms, ("none", "sum", "batchmean")):
        results = []
        for wide in (False, True):
            leaves = [
                (t.double() if wide else t.clone()).requires_grad_() for t in (*form, mu, logvar)
            ]
            *own, m, v = leaves
            if wide:
                with vae_fast.set_backend("reference"):
                    recon = vae_fast.nll(spec.name, own, x, reduction=reduction)
                    kl = vae_fast.gaussian_kl(m, v, reduction=reduction)
                    terms = (recon + 0.7 * kl, recon, kl)
            else:
                terms = vae_fast.elbo(spec.name, own, x, m, v, beta=0.7, reduction=reduction)
            upstream = upstream_of(terms[0].shape, terms[0].dtype)
            grads = torch.autograd.grad(terms[0], leaves, upstream, retain_graph=True)
            both = torch.autograd.grad(terms[1:], leaves, [upstream, 2 * upstream])
            results.append([*[t.detach() for t in terms], *grads, *both])
        same(*results, reduction)


# --- single likelihoods --------------------------------------------------------------------------


def test_the_mixtures_clamp_lets_the_gradient_through_at_its_edge():
    """At a log scale of -7 exactly, and not below; the kernel and plain PyTorch alike."""
    spec = SPECS["discretized_logistic_mixture"]
    params, x = inputs(spec, (2, 3, 3, 2), torch.float64)
    k = params[0].shape[1] // 10
    scales = params[0][:, k:].unflatten(1, (3, 3, k))[:, :, 1]
    for log_scale, is_cut in ((-7.0, False), (-7.5, True)):
        scales.fill_(log_scale)
        _, grad = call(spec, params, x)
        same([grad], truth(spec, params, x)[1:], log_scale)
        of_scales = grad[:, k:].unflatten(1, (3, 3, k))[:, :, 1]
        assert (of_scales == 0).all() == is_cut


@pytest.mark.parametrize("rows", [6, 1, 0])
def test_every_parameter_may_be_shared_by_the_samples(native, rows):
    """Also where all are shared: they then look like one set of samples, each with its own."""
    for spec in SPECS.values():
        if spec.planes or spec.family == "bernoulli":
            continue
        params, target = spec.inputs((6, 3, 5), torch.float64, torch.Generator().manual_seed(1))
        target = target[:rows]
        params = [p[0] for p in params]
        results = []
        for backend in ("native", "reference"):
            leaves = [p.clone().requires_grad_() for p in params]
            with vae_fast.set_backend(backend):
                value = vae_fast.nll(spec, leaves, target, reduction="none")
            results.append((value.detach(), *torch.autograd.grad(value.sum(), leaves)))
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9, msg=spec.name)


def test_more_planes_than_the_drivers_count_are_refused():
    logits = torch.zeros(1, 2**25, dtype=torch.float16)  # pages that nothing touches
    with pytest.raises(RuntimeError, match="takes at most 33554431 planes, not 33554432"):
        torch.ops.vae_fast.categorical_nll([logits], torch.zeros(1, dtype=torch.int64), 0)
