"""Pairwise sums: values and gradients against float64, bits, memory, transforms, errors."""

import itertools
import math
import resource
import warnings

import numpy as np
import pytest
import torch

import vae_fast
from vae_fast import (
    aggregate_log_densities,
    decomposed_kl,
    mixture_log_density,
    mmd,
    nearest_code,
    reference_pairwise,
    total_correlation,
)

F64 = torch.float64
DTYPES = (torch.float32, F64, torch.bfloat16, torch.float16)
# (B, D): odd, one, none, whole vectors, more than a tile of rows.
SHAPES = ((41, 7), (1, 1), (0, 3), (18, 64), (70, 33))


def normal(*shape, dtype=F64, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=F64) * scale + shift).to(dtype)


# --- the truth, written a second time ------------------------------------------------------------


def log_normal(z, mu, logvar):
    """(B, K, D)."""
    distance = (z[:, None] - mu[None]) ** 2 / logvar.exp()[None]
    return -(distance + logvar[None] + math.log(2 * math.pi)) / 2


def true_mixture(z, mu, logvar, logits):
    return torch.logsumexp(log_normal(z, mu, logvar).sum(2) + torch.log_softmax(logits, 0), 1)


def true_aggregate(z, mu, logvar, n, sampling):
    b = len(z)
    weight = torch.full((b, b), 1 / (n * b), dtype=F64)
    if sampling == "stratified" and b > 1:
        for i, j in itertools.product(range(b), range(b)):
            if i == j:
                weight[i, j] = 1 / n
            elif j == (i + 1) % b:
                weight[i, j] = (n - (b - 1)) / (n * (b - 1))
            else:
                weight[i, j] = 1 / (b - 1)
    terms = log_normal(z, mu, logvar)
    log_weight = weight.log()
    whole = torch.logsumexp(terms.sum(2) + log_weight, 1)
    return whole, torch.logsumexp(terms + log_weight[:, :, None], 1)


def true_mmd(x, y, kernel, bandwidths, unbiased):
    def k(a, b):
        d2 = ((a[:, None] - b[None]) ** 2).sum(2)
        parts = [
            torch.exp(-d2 / 2 / h**2) if kernel == "rbf" else 2 * h**2 / (2 * h**2 + d2)
            for h in bandwidths
        ]
        return sum(parts) / len(parts)

    def within(a):
        n = len(a)
        if not unbiased:
            return k(a, a).mean()
        return (k(a, a).sum() - k(a, a).diagonal().sum()) / (n * (n - 1))

    return within(x) + within(y) - 2 * k(x, y).mean()


def compare(op, truth, inputs, plain=None):
    """Values and gradients of op within twice plain PyTorch's error, or a few epsilons."""
    results = []
    for f, wide in ((op, False), (truth, True)) + (((plain, False),) if plain else ()):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in inputs]
        out = f(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        upstream = [normal(*o.shape, seed=9).to(o.dtype) for o in outs]
        grads = torch.autograd.grad(outs, leaves, upstream)
        results.append([t.detach() for t in (*outs, *grads)])
    for i, (ours, true) in enumerate(zip(results[0], results[1], strict=True)):
        assert ours.shape == true.shape
        if not true.numel():
            continue
        scale = max(true.abs().max().item(), 1.0)  # upstream gradients are of that size
        # In float64 the truth is rounded as well.
        allowed = (64 if ours.dtype == F64 else 16) * torch.finfo(ours.dtype).eps * scale
        if plain:
            allowed += 2 * (results[2][i].double() - true).abs().max().item()
        off = (ours.double() - true).abs().max().item()
        assert off <= allowed, (i, off, allowed)


# --- densities -----------------------------------------------------------------------------------


def plainly(op):
    """``op`` in plain PyTorch."""

    def run(*inputs):
        with vae_fast.set_backend("reference"):
            return op(*inputs)

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_densities_and_their_gradients(implementation, dtype):
    for b, d in SHAPES:
        z, mu, logvar = (normal(b, d, seed=s, dtype=dtype) for s in (1, 2, 3))
        for sampling in ("stratified", "weighted"):
            if b == 0:
                whole, parts = aggregate_log_densities(z, mu, logvar, 100, sampling=sampling)
                assert whole.shape == (0,) and parts.shape == (0, d)
                continue

            def op(z, m, v, sampling=sampling):
                return aggregate_log_densities(z, m, v, 100, sampling=sampling)

            compare(
                op,
                lambda z, m, v, s=sampling: true_aggregate(z, m, v, 100, s),
                [z, mu, logvar],
                plainly(op),
            )
        for k in (1, 50):
            mu, logvar, logits = (
                normal(k, d, dtype=dtype, seed=4),
                normal(k, d, dtype=dtype, seed=5),
                normal(k, dtype=dtype, seed=6),
            )
            inputs = [z, mu, logvar, logits]
            compare(mixture_log_density, true_mixture, inputs, plainly(mixture_log_density))


def test_far_points_keep_their_digits(implementation):
    """Where exp(-distance) is 0 in float32, and where variances are far apart."""
    z = torch.tensor([[0.0, 50.0], [300.0, -1.0], [0.1, 0.2]])
    mu = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-3.0, 0.2]])
    logvar = torch.tensor([[0.0, 0.0], [-40.0, 1.0], [60.0, -60.0]])
    for sampling in ("stratified", "weighted"):
        ours = aggregate_log_densities(z, mu, logvar, 50, sampling=sampling)
        true = true_aggregate(z.double(), mu.double(), logvar.double(), 50, sampling)
        for a, b in zip(ours, true, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=1e-5)
    far = torch.full((2, 3), 1e4)
    ours = mixture_log_density(far, torch.zeros(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(ours, -1.5e8 * torch.ones(2), rtol=1e-6, atol=0)
    wrong = torch.tensor([[math.nan, 0.0], [0.0, 0.0]])
    ours = mixture_log_density(wrong, torch.zeros(2, 2), torch.zeros(2, 2))
    assert ours[0].isnan() and ours[1].isfinite()


def test_gradients_of_far_points(implementation):
    """Gradients weigh terms by exp of a difference of log-densities. Here these are some 10^6 nats,
    of which the last place in float32 is 1/16."""
    z = normal(9, 5, dtype=torch.float32, seed=1)
    mu = normal(9, 5, dtype=torch.float32, seed=2, shift=3.0)
    logvar = normal(9, 5, dtype=torch.float32, seed=3, shift=-12.0)

    def gradients(op, wide):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (z, mu, logvar)]
        return torch.autograd.grad(sum(out.sum() for out in op(*leaves)), leaves)

    def ours(*leaves):
        whole, parts = aggregate_log_densities(*leaves, 100)
        assert -whole.max() > 1e5 and -whole.min() > 1e6
        return whole, parts

    found = gradients(ours, False)
    true = gradients(lambda *leaves: true_aggregate(*leaves, 100, "stratified"), True)
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * b.abs().max().item())


def test_stratified_weights_are_unbiased(implementation):
    """Over every order of drawing without replacement, exp of the estimate averages to q(z).

    With weights in columns in place of the diagonal it does not.
    """
    n, m = 5, 2
    mu, logvar = normal(n, 2, seed=1), normal(n, 2, seed=2)
    z = normal(1, 2, seed=3)
    own = 3  # the sample that z belongs to
    true = log_normal(z, mu, logvar)[0].sum(1).exp().mean()
    true_parts = log_normal(z, mu, logvar)[0].exp().mean(0)
    orders = list(itertools.permutations([i for i in range(n) if i != own], m))
    for row in range(m + 1):  # wherever in the batch z's own sample stands
        whole, parts = 0.0, 0.0
        for others in orders:
            batch = [*others[:row], own, *others[row:]]
            zs = z.expand(m + 1, 2)
            found = aggregate_log_densities(zs, mu[batch], logvar[batch], n)
            whole, parts = whole + found[0][row].exp(), parts + found[1][row].exp()
        torch.testing.assert_close(whole / len(orders), true, rtol=1e-10, atol=0)
        torch.testing.assert_close(parts / len(orders), true_parts, rtol=1e-10, atol=0)


def test_the_decomposition_adds_up(implementation):
    z, mu, logvar = (normal(30, 4, seed=s) for s in (1, 2, 3))
    parts = decomposed_kl(z, mu, logvar, 400)
    log_q = log_normal(z, mu, logvar).sum(2).diagonal()
    log_p = -(z**2 + math.log(2 * math.pi)).sum(1) / 2
    torch.testing.assert_close(sum(parts), (log_q - log_p).mean())
    torch.testing.assert_close(parts.total_correlation, total_correlation(z, mu, logvar, 400))
    whole, marginals = true_aggregate(z, mu, logvar, 400, "stratified")
    torch.testing.assert_close(parts.mutual_information, (log_q - whole).mean())
    torch.testing.assert_close(parts.dimension_kl, (marginals.sum(1) - log_p).mean())


# --- MMD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mmd_and_its_gradients(implementation, dtype):
    for (n, d), m in itertools.product(((41, 7), (2, 1), (17, 64)), (2, 30)):
        x, y = normal(n, d, dtype=dtype, seed=1), normal(m, d, dtype=dtype, seed=2, shift=0.5)
        for kernel, unbiased in itertools.product(("rbf", "imq"), (True, False)):
            options = {"kernel": kernel, "bandwidths": (0.5, 2.0, 5.0), "unbiased": unbiased}

            def op(x, y, options=options):
                return mmd(x, y, **options)

            def truth(x, y, options=options):
                return true_mmd(x, y, **options)

            # A difference of means of size 1: its error is theirs.
            ours, true = op(x, y), truth(x.double(), y.double())
            eps = torch.finfo(ours.dtype).eps
            assert abs(ours.double() - true) <= 4 * eps
            leaves = [t.detach().requires_grad_() for t in (x, y)]
            wide = [t.detach().double().requires_grad_() for t in (x, y)]
            grads = torch.autograd.grad(op(*leaves), leaves)
            for grad, want in zip(grads, torch.autograd.grad(truth(*wide), wide), strict=True):
                near = 16 * torch.finfo(dtype).eps * want.abs().max() + 4 * eps / n
                assert (grad.double() - want).abs().max() <= near


# --- nearest codes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_codes_are_exact_and_ties_go_to_the_lowest(implementation, dtype):
    for n, k, d in ((41, 7, 7), (1, 1, 1), (0, 5, 3), (70, 513, 2), (33, 300, 64)):
        x, codes = normal(n, d, dtype=dtype, seed=1), normal(k, d, dtype=dtype, seed=2)
        codes[k // 2 :] = codes[: k - k // 2].clone()  # every code twice
        x[: n // 3] = codes[torch.arange(n // 3) % k]  # some at distance 0
        index, distance = nearest_code(x, codes)
        exact = ((x.double()[:, None] - codes.double()[None]) ** 2).sum(2).numpy()
        want = np.array([np.flatnonzero(row == row.min())[0] for row in exact], dtype=np.int64)
        assert index.dtype == torch.int64 and index.tolist() == want.tolist()
        if n:
            nearest = torch.from_numpy(exact.min(1))
            torch.testing.assert_close(distance.double(), nearest, rtol=1e-5, atol=1e-9)


def test_nearest_codes_where_products_cancel(implementation):
    """Far from 0, |c|^2 - 2 x c loses every digit of the distances; the choice does not."""
    if implementation == "cuda":
        pytest.skip("on the CPU")
    codes = 1000 + torch.arange(200.0).view(-1, 1) * torch.tensor([1e-3, -1e-3])
    x = codes[torch.randperm(200)] + 2e-4
    index, _ = nearest_code(x, codes)
    exact = ((x.double()[:, None] - codes.double()) ** 2).sum(2)
    assert torch.equal(index, exact.argmin(1))


def test_gradients_of_the_nearest_distance(implementation):
    x, codes = normal(20, 3, seed=1), normal(5, 3, seed=2)
    leaves = [t.requires_grad_() for t in (x, codes)]
    index, distance = nearest_code(*leaves)
    upstream = normal(20, seed=3)
    grad_x, grad_codes = torch.autograd.grad(distance, leaves, upstream)
    want = 2 * (x - codes[index]) * upstream[:, None]
    torch.testing.assert_close(grad_x, want.detach())
    by_code = torch.zeros_like(codes).index_add(0, index, -want)
    torch.testing.assert_close(grad_codes, by_code.detach())


# --- requirements of every op --------------------------------------------------------------------

CASES = {
    "aggregate": (
        lambda *a: aggregate_log_densities(*a, 1000),
        lambda n, dtype: [normal(n, 13, dtype=dtype, seed=s) for s in (1, 2, 3)],
    ),
    "mixture": (
        mixture_log_density,
        lambda n, dtype: [
            normal(n, 13, dtype=dtype),
            *(normal(n // 2, 13, dtype=dtype, seed=s) for s in (1, 2)),
            normal(n // 2, dtype=dtype, seed=3),
        ],
    ),
    "mmd": (
        lambda x, y: mmd(x, y, kernel="imq", bandwidths=(1.0, 3.0)),
        lambda n, dtype: [normal(n, 13, dtype=dtype), normal(n // 2, 13, dtype=dtype, seed=1)],
    ),
    "nearest": (
        lambda x, c: nearest_code(x, c)[1],
        lambda n, dtype: [normal(n, 13, dtype=dtype), normal(n // 2, 13, dtype=dtype, seed=1)],
    ),
}


def everything(op, inputs):
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = op(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    return [*outs, *torch.autograd.grad([o.sum() for o in outs], leaves)]


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_for_every_number_of_threads(cpu_level, threads, name):
    op, make = CASES[name]
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make(301, dtype)
        threads(1)
        want = everything(op, inputs)
        for count in (2, 3, 5):
            threads(count)
            for a, b in zip(everything(op, inputs), want, strict=True):
                assert torch.equal(a, b), f"{count} threads"


@pytest.mark.parametrize("name", CASES)
def test_derivatives_to_second_order(native, name):
    op, make = CASES[name]
    inputs = [t.requires_grad_() for t in make(4, F64)]
    assert torch.autograd.gradcheck(op, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that plain PyTorch computes them
        assert torch.autograd.gradgradcheck(op, inputs)


@pytest.mark.parametrize(
    "name",
    ["aggregate", *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n != "aggregate")],
)
def test_compiled_is_eager(native, name):
    torch.compiler.reset()
    op, make = CASES[name]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (20, 12):
        inputs = make(n, torch.float32)
        for a, b in zip(everything(compiled, inputs), everything(op, inputs), strict=True):
            torch.testing.assert_close(a, b)
    torch.compiler.reset()


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_read_and_inputs_are_left_alone(native, name):
    op, make = CASES[name]
    inputs = make(20, torch.float32)
    want = everything(op, inputs)
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in inputs]
    turned = [t.t().contiguous().t() if t.dim() == 2 else t for t in inputs]
    for views in (strided, turned):
        before = [t.clone() for t in views]
        for a, b in zip(everything(op, views), want, strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_memory_is_that_of_the_rows(native):
    """The tensor of pairs would take 1 GiB."""
    inputs = [normal(2048, 64, dtype=torch.float32, seed=s) for s in (1, 2, 3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total_correlation(*(t.requires_grad_() for t in inputs), 10**5).backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_large_problems_in_plain_pytorch_are_taken_in_chunks(monkeypatch):
    op, make = CASES["aggregate"]
    inputs = make(40, F64)
    with vae_fast.set_backend("reference"):
        want = everything(op, inputs)
        monkeypatch.setattr(reference_pairwise, "LARGEST", 40 * 13 * 7)
        for a, b in zip(everything(op, inputs), want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: total_correlation(z, z, z, 4), "dataset_size is 4"),
        (lambda z: total_correlation(z, z[:3], z[:3], 99), "z has 6 rows"),
        (lambda z: total_correlation(z, z, z, 99, sampling="none"), "sampling must be"),
        (lambda z: mixture_log_density(z, z[:, :2], z[:, :2]), "columns"),
        (lambda z: mixture_log_density(z, z[:0], z[:0]), "at least 1 row"),
        (lambda z: mixture_log_density(z, z, z, z[0]), "logits must be"),
        (lambda z: mmd(z, z[:1]), "at least 2 rows"),
        (lambda z: mmd(z, z, kernel="linear"), "kernel must be"),
        (lambda z: mmd(z, z, bandwidths=(0.0,)), "bandwidths must be"),
        (lambda z: mmd(z, z[0]), "must be a matrix"),
        (lambda z: nearest_code(z, z[:0]), "at least 1 row"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(6, 3))
    with pytest.raises(TypeError):
        nearest_code(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
    for bandwidths in (1.0, "1", [1.0, "2"], [None]):
        with pytest.raises(TypeError, match="bandwidths must be numbers, one or several"):
            mmd(torch.zeros(2, 3), torch.zeros(2, 3), bandwidths=bandwidths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_batch_of_no_rows_has_the_dtype_of_sums(implementation, dtype):
    z = torch.zeros(0, 3, dtype=dtype, device=implementation)
    whole, parts = aggregate_log_densities(z, z, z, 100)
    assert (whole.shape, parts.shape) == ((0,), (0, 3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert whole.dtype == parts.dtype == wide


def test_a_code_with_a_nan_is_near_to_none(implementation):
    """At any position among the codes of one vector or several."""
    x, codes = normal(7, 3, dtype=torch.float32), normal(70, 3, dtype=torch.float32, seed=1)
    distances = (x.double()[:, None] - codes.double()[None]).square().sum(2)
    for place in range(70):
        wrong, right = codes.clone(), distances.clone()
        wrong[place, 1], right[:, place] = math.nan, math.inf
        index, found = nearest_code(x, wrong)
        assert index.tolist() == right.argmin(1).tolist(), place
        torch.testing.assert_close(found.double(), right.min(1).values)
