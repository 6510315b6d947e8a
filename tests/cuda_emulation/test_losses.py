"""The likelihoods' CUDA kernels, alone and with the KL, on the host, against float64 PyTorch."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
import torch.nn.functional as F

from tests.cuda_emulation import emulator, ops
from tests.cuda_emulation.emulator import REDUCTIONS, Emulator
from tests.cuda_emulation.ops import Up, accuracy
from vae_fast import reference
from vae_fast.likelihoods import SPECS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 5), (3, 5), (7, 784), (41, 401), (2, 9001), (1, 9001)]


def scores(shape: tuple[int, int], dtype: torch.dtype, from_logits: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    x = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x if from_logits else torch.sigmoid(x)).to(dtype)


def targets(shape: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(shape[0] * 999 + shape[1])
    t = torch.rand(shape, generator=generator)
    found = [t.to(dtype), (t * 255.99).to(torch.uint8), t > 0.5]
    return found if dtype in (torch.float32, torch.float64) else [*found, t]


def accumulators(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape[0], generator=generator)
    return values.double() if dtype == torch.float64 else values


def nll_and_grad(x, t, from_logits: bool, factor: torch.Tensor | None):
    """float64 nll of each row, and the gradient with `factor` (rows, 1) upstream."""
    x = x.double().requires_grad_()
    terms = reference.nll_terms(SPECS[bernoulli(from_logits)], [x], t)
    nll = terms.sum(1)
    grad = torch.ones(()) if factor is None else torch.autograd.grad((terms * factor).sum(), x)[0]
    return nll.detach(), grad


def bernoulli(from_logits: bool) -> str:
    return "bernoulli" if from_logits else "bernoulli_probs"


def reduced(rows: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / rows.numel()


@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bernoulli(emulation: Emulator, shape, dtype: torch.dtype, from_logits: bool):
    x = scores(shape, dtype, from_logits)
    rows = shape[0]
    if dtype == torch.float16 and not from_logits:
        x = x.clamp(1e-3, 1 - 1e-3)  # or 1 / (p (1 - p)) has no digits left to compare
    upstream = accumulators(shape, dtype, 5)
    ways = [
        ("sum", Up(weight=0.5)),
        ("batchmean", Up(part=upstream[:1], scale=1 / rows)),
        ("none", Up(part=upstream, per_row=True)),
    ]
    for number, t in enumerate(targets(shape, dtype)):
        for reduction, up in ways:
            nll, grad = nll_and_grad(x, t, from_logits, up.factor(rows))
            # The size of the largest term: the rounding of gradients and sums is relative to it.
            bound = max(1.0, nll.max().item() / shape[1] * 8)
            sizes = grad.abs() if not from_logits else None
            emulation.begin(order=2, offset=(shape[1] + number) % 3)
            name = bernoulli(from_logits)
            found, (found_grad,) = ops.nll(emulation, name, [x], t, reduction=reduction, up=up)
            accuracy(found, reduced(nll, reduction))
            accuracy(found_grad, grad, sizes if sizes is None else sizes + bound)
            if number > 0:
                continue
            emulation.begin(order=1)
            alone, _ = ops.nll(emulation, name, [x], t, reduction=reduction)
            assert torch.equal(alone, found)
            emulation.begin(order=0)
            _, alone = ops.nll(emulation, name, [x], t, value=False, reduction=reduction, up=up)
            assert torch.equal(alone[0], found_grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("dtype", "kl_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("shape", "latents"),
    [((1, 1), 1), ((3, 5), 2), ((41, 401), 20), ((7, 784), 33), ((2, 4999), 5003)],
    ids=str,
)
def test_elbo(emulation: Emulator, shape, latents: int, dtype, kl_dtype, reduction: str):
    rows = shape[0]
    x = scores(shape, dtype, True)
    generator = torch.Generator().manual_seed(latents)
    mu, logvar = (torch.randn(rows, latents, generator=generator).to(kl_dtype) for _ in range(2))
    beta, beta_tensor = 0.25, torch.tensor(3.0)
    loss_up, recon_up, kl_up = (accumulators(shape, dtype, s) for s in (1, 2, 3))
    per_row = reduction == "none"
    if not per_row:
        loss_up, recon_up, kl_up = loss_up[:1], recon_up[:1], kl_up[:1]
    scale = 1 / rows if reduction == "batchmean" else 1.0
    kl_weight = {"weight": beta, "weight_tensor": beta_tensor, "scale": scale, "per_row": per_row}
    ways = [
        (Up(scale=scale, per_row=per_row), Up(**kl_weight)),
        (
            Up(loss_up, recon_up, scale=scale, per_row=per_row),
            Up(loss_up, kl_up, **kl_weight),
        ),
    ]
    for number, t in enumerate(targets(shape, dtype)):
        for ups in ways:
            nll, grad = nll_and_grad(x, t, True, ups[0].factor(rows))
            m, v = mu.double().requires_grad_(), logvar.double().requires_grad_()
            kl = reference.gaussian_kl(m, v, reduction="none")
            kl_grads = torch.autograd.grad((kl * ups[1].factor(rows)[:, 0]).sum(), (m, v))
            expected = [reduced(r, reduction) for r in (nll + 0.75 * kl.detach(), nll, kl.detach())]
            emulation.begin(order=2, offset=(shape[1] + number) % 3)
            losses, grads = ops.elbo(
                emulation,
                "bernoulli",
                [x],
                t,
                mu,
                logvar,
                beta=beta,
                beta_tensor=beta_tensor,
                reduction=reduction,
                ups=ups,
            )
            for found, right in zip([*losses, *grads], [*expected, grad, *kl_grads], strict=True):
                accuracy(found, right)
            if number > 0:
                continue
            emulation.begin(order=1, offset=1)
            alone, _ = ops.elbo(
                emulation,
                "bernoulli",
                [x],
                t,
                mu,
                logvar,
                beta=beta,
                beta_tensor=beta_tensor,
                reduction=reduction,
            )
            assert all(torch.equal(a, b) for a, b in zip(alone, losses, strict=True))
            emulation.begin(order=3)
            _, alone = ops.elbo(
                emulation, "bernoulli", [x], t, mu, logvar, value=False, reduction=reduction,
                ups=ups,
            )  # fmt: skip
            assert all(torch.equal(a, b) for a, b in zip(alone, grads, strict=True))


def test_elbo_of_probabilities(emulation: Emulator):
    shape = (41, 401)
    p, t = scores(shape, torch.float32, False), targets(shape, torch.float32)[0]
    zeros = torch.zeros(41, 3)
    emulation.begin()
    name = "bernoulli_probs"
    losses, grads = ops.elbo(emulation, name, [p], t, zeros, zeros, ups=(Up(), Up()))
    nll, grad = nll_and_grad(p, t, False, torch.ones(41, 1))
    accuracy(losses[0], nll.sum())
    accuracy(losses[1], nll.sum())
    assert losses[2] == 0.0
    accuracy(grads[0], grad, grad.abs() + 8.0)


def test_uint8_is_x_over_255_to_the_last_bit(emulation: Emulator):
    target = torch.arange(256, dtype=torch.uint8)[:, None]
    for dtype in (torch.float32, torch.float64):
        # At logit -1024 the nll is 1024 t, and nothing is rounded but t.
        logits = torch.full((256, 1), -1024.0, dtype=dtype)
        emulation.begin()
        nll, _ = ops.nll(emulation, "bernoulli", [logits], target, reduction="none")
        assert torch.equal(nll / 1024.0, target[:, 0].to(dtype) / 255.0)


def test_clamps_of_probabilities_are_torchs(emulation: Emulator):
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1e-30, 0.5, math.nan]])
    t = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.5]])
    emulation.begin()
    name = "bernoulli_probs"
    nll, (grad,) = ops.nll(emulation, name, [p.T], t.T, reduction="none", up=Up())
    leaf = p.T.clone().requires_grad_()
    expected = reference.nll_terms(SPECS[name], [leaf], t.T)
    torch.testing.assert_close(nll, expected[:, 0].detach(), equal_nan=True)
    assert nll[2] == 100.0 and nll[3] == 100.0
    (right,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(grad, right, equal_nan=True)


def test_extreme_logits(emulation: Emulator):
    x = torch.tensor(
        [[1e4, -1e4, 1e4, -1e4, math.inf, -math.inf, math.inf, math.nan, 88.0, -100.0]]
    )
    t = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    emulation.begin()
    nll, (grad,) = ops.nll(emulation, "bernoulli", [x.T], t.T, reduction="none", up=Up())
    assert nll[:4].tolist() == [0.0, 0.0, 1e4, 1e4]
    assert grad[:4, 0].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert nll[6] == math.inf and grad[6, 0] == 1.0
    assert nll[7].isnan() and grad[7, 0].isnan()
    # A confident, right prediction keeps its digits, where 1 - sigmoid(x) would be 0.
    torch.testing.assert_close(
        nll[8:].double(), F.softplus(torch.tensor([-88.0, -100.0]).double()), rtol=0.2, atol=0
    )
    torch.testing.assert_close(grad[8, 0].double(), -torch.sigmoid(torch.tensor(-88.0).double()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 0)], ids=str)
def test_empty(emulation: Emulator, shape, reduction: str):
    empty, latents = torch.empty(shape), torch.zeros(shape[0], 2)
    emulation.begin()
    nll, _ = ops.nll(emulation, "bernoulli", [empty], empty, reduction=reduction, up=Up())
    expected = reference.nll(SPECS["bernoulli"], [empty], empty, reduction)
    torch.testing.assert_close(nll, expected, equal_nan=True)
    emulation.begin()
    losses, grads = ops.elbo(
        emulation, "bernoulli", [empty], empty, latents, latents, reduction=reduction,
        ups=(Up(), Up()),
    )  # fmt: skip
    spec = SPECS["bernoulli"]
    right = reference.elbo(spec, [empty], empty, latents, latents, 1.0, reduction)
    for found, value in zip(losses, right, strict=True):
        torch.testing.assert_close(found, value, equal_nan=True)
    assert grads[1].eq(0.0).all()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_same_bits_in_any_order_and_at_any_alignment(emulation: Emulator, reduction: str):
    shape = (41, 401)
    x, t = scores(shape, torch.float32, True), targets(shape, torch.float32)[1]
    mu, logvar = torch.randn(2, 41, 20).unbind(0)
    results = set()
    for order, offset in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]:
        emulation.begin(order, offset)
        losses, grads = ops.elbo(
            emulation, "bernoulli", [x], t, mu, logvar, reduction=reduction, ups=(Up(), Up())
        )
        results.add(tuple(r.numpy().tobytes() for r in (*losses, *grads)))
    assert len(results) == 1


def test_both_extents_and_their_sums_take_one_launch(emulation: Emulator):
    for shape, latents in [((3, 5), 2), ((128, 784), 20), ((512, 784), 64)]:
        x, t = scores(shape, torch.float32, True), targets(shape, torch.float32)[0]
        mu = torch.zeros(shape[0], latents)
        emulation.begin()
        ops.elbo(emulation, "bernoulli", [x], t, mu, mu, ups=(Up(), Up()))
        assert emulation.launches == 1
        emulation.begin()
        ops.elbo(emulation, "bernoulli", [x], t, mu, mu, value=False, ups=(Up(), Up()))
        assert emulation.launches == 1


def test_a_small_problem_is_cut_into_many_blocks(emulation: Emulator):
    x = torch.zeros(128, 784)
    emulation.begin()
    ops.nll(emulation, "bernoulli", [x], x)
    assert emulation.launches == 1 and emulation.lib.emulation_blocks() == 98


def test_error_is_at_most_twice_eagers(emulation: Emulator):
    """Each row's nll and each gradient; the arithmetic is the host's, the formulas the kernels'."""
    shape, dtype = (64, 401), torch.float32
    x, t = scores(shape, dtype, True), targets(shape, dtype)[0]
    emulation.begin()
    nll, (grad,) = ops.nll(emulation, "bernoulli", [x], t, reduction="none", up=Up())
    leaf = x.clone().requires_grad_()
    eager = F.binary_cross_entropy_with_logits(leaf, t, reduction="none").sum(1)
    (eager_grad,) = torch.autograd.grad(eager.sum(), leaf)
    right, right_grad = nll_and_grad(x, t, True, torch.ones(shape[0], 1))
    for found, peer, truth in ((nll, eager, right), (grad, eager_grad, right_grad)):
        worst = (found.double() - truth).abs().max()
        peers = (peer.double() - truth).abs().max()
        assert worst <= 2 * peers + torch.finfo(dtype).eps * truth.abs().max()


def others() -> list[str]:
    """The likelihoods beside the Bernoulli, which has tests of its own."""
    return [n for n, spec in SPECS.items() if not spec.planes and spec.family != "bernoulli"]


def given(name: str, shape: tuple[int, int], dtype: torch.dtype, kind: str):
    """Parameters and a target whose dtype is ``kind``: the parameters' own, uint8 or bool."""
    generator = torch.Generator().manual_seed(11)
    params, t = SPECS[name].inputs(shape, dtype, generator)
    if kind == "own":
        return params, t.to(dtype)
    bytes_ = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return params, (bytes_ if kind == "uint8" else bytes_ > 127)


@pytest.mark.parametrize("name", others())
def test_every_likelihood(emulation: Emulator, name: str):
    """Value and gradients with whole groups, tails and rows, against the reference in float64."""
    spec, shape = SPECS[name], (3, 299)
    kinds = ["own", "uint8"] + ["bool"] * (spec.target != "level")
    upstream = torch.tensor([0.5, -2.0, 3.0])
    for dtype, kind in [(torch.float32, k) for k in kinds] + [(torch.float64, "own")]:
        params, t = given(name, shape, dtype, kind)
        up = Up(part=upstream.to(emulator.accumulator(dtype)), per_row=True)
        leaves = [p.double().requires_grad_() for p in params]
        terms = reference.nll_terms(spec, leaves, t)
        right = torch.autograd.grad((terms * up.factor(3)).sum(), leaves)
        rounding = 8 * torch.finfo(dtype).eps
        emulation.begin(order=2, offset=1)
        found, grads = ops.nll(emulation, name, params, t, reduction="none", up=up)
        sizes = terms.detach().abs().sum(1)
        assert ((found.double() - terms.detach().sum(1)).abs() <= 4 * rounding * sizes).all()
        for grad, expected in zip(grads, right, strict=True):
            # A count's or a level's gradient is a difference of numbers of its size.
            bound = 200 * rounding * (expected.abs() + 1 + t.double().abs())
            assert ((grad.double() - expected).abs() <= bound).all()
        # With the KL, in two orders of execution; then only the last gradient.
        mu = torch.linspace(-2, 2, 21, dtype=dtype).view(3, 7)
        emulation.begin(order=0)
        losses, again = ops.elbo(
            emulation, name, params, t, mu, mu, reduction="none", ups=(up, Up(per_row=True))
        )
        assert torch.equal(losses[1], found)
        assert all(torch.equal(a, b) for a, b in zip(again, grads, strict=False))
        accuracy(losses[2], reference.gaussian_kl(mu.double(), mu.double(), reduction="none"))
        emulation.begin(order=1)
        wanted = [False] * (len(params) - 1) + [True]
        _, alone = ops.nll(emulation, name, params, t, value=False, up=up, wanted=wanted)
        assert torch.equal(alone[-1], grads[-1])


def test_any_byte_but_0_is_true(emulation: Emulator):
    bytes_ = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    for name in ("bernoulli", "gaussian", "poisson"):
        params, _ = given(name, (1, 4), torch.float32, "own")
        emulation.begin()
        found, _ = ops.nll(emulation, name, params, bytes_.view(torch.bool))
        right = reference.nll(SPECS[name], params, (bytes_ > 0).float(), "sum")
        torch.testing.assert_close(found, right)


def test_outside_the_unit_interval_the_value_is_nan(emulation: Emulator):
    p = torch.tensor([[-0.1, 1.1, 0.5, 0.5, 0.5]])
    t = torch.tensor([[0.5, 0.5, -0.1, 1.1, 1.0]])
    emulation.begin()
    nll, _ = ops.nll(emulation, "bernoulli_probs", [p.T], t.T, reduction="none")
    assert nll.isnan().tolist() == [True, True, True, True, False]


def test_the_driver_says_what_it_does_not_serve(emulation: Emulator):
    """The driver names each form that it can't read: shared, stacked, half precision, planes."""
    operand = emulation.structs["Operand"]

    def refusal(name: str = "gaussian", row: int = 5, target_rows: int = 3, dtype: int = 0) -> str:
        args = emulation.structs["Likelihood"](
            id=[*emulation.likelihoods, "categorical"].index(name),
            dtype=dtype,
            target_dtype=dtype,
            rows=3,
            target_rows=target_rows,
            planes=1,
            inner=5,
        )
        for j in range(2):
            args.params[j] = operand(None, row, 0, 1)
        return (emulation.lib.emulated_refusal(ctypes.byref(args)) or b"").decode()

    assert refusal() == ""
    assert "stacked or shared" in refusal(row=0) and "stacked or shared" in refusal(row=10)
    assert "stacked or shared" in refusal(target_rows=1)
    assert "float32 and float64" in refusal(dtype=emulator.code(torch.bfloat16))
    assert "no CUDA kernel" in refusal("categorical")
