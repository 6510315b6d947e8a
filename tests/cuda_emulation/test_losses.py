"""The Bernoulli and BCE + KL CUDA kernels, on the host, against float64 PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import REDUCTIONS, Emulator
from tests.cuda_emulation.ops import Up, accuracy
from vae_fast import reference

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
    terms = reference.bernoulli_nll_terms(x, t, from_logits)
    nll = terms.sum(1)
    grad = torch.ones(()) if factor is None else torch.autograd.grad((terms * factor).sum(), x)[0]
    return nll.detach(), grad


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
            # Of the largest term, which the gradient's and each sum's rounding are relative to.
            bound = max(1.0, nll.max().item() / shape[1] * 8)
            sizes = grad.abs() if not from_logits else None
            emulation.begin(order=2, offset=(shape[1] + number) % 3)
            found, found_grad = ops.bernoulli(
                emulation, x, t, from_logits=from_logits, reduction=reduction, up=up
            )
            accuracy(found, reduced(nll, reduction))
            accuracy(found_grad, grad, sizes if sizes is None else sizes + bound)
            if number > 0:
                continue
            emulation.begin(order=1)
            alone, _ = ops.bernoulli(emulation, x, t, from_logits=from_logits, reduction=reduction)
            assert torch.equal(alone, found)
            emulation.begin(order=0)
            _, alone = ops.bernoulli(
                emulation, x, t, from_logits=from_logits, value=False, reduction=reduction, up=up
            )
            assert torch.equal(alone, found_grad)


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
def test_bce_kl(emulation: Emulator, shape, latents: int, dtype, kl_dtype, reduction: str):
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
            losses, grads = ops.bce_kl(
                emulation,
                x,
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
            alone, _ = ops.bce_kl(
                emulation,
                x,
                t,
                mu,
                logvar,
                beta=beta,
                beta_tensor=beta_tensor,
                reduction=reduction,
            )
            assert all(torch.equal(a, b) for a, b in zip(alone, losses, strict=True))
            emulation.begin(order=3)
            _, alone = ops.bce_kl(
                emulation, x, t, mu, logvar, value=False, reduction=reduction, ups=ups
            )
            assert all(torch.equal(a, b) for a, b in zip(alone, grads, strict=True))


def test_bce_kl_of_probabilities(emulation: Emulator):
    shape = (41, 401)
    p, t = scores(shape, torch.float32, False), targets(shape, torch.float32)[0]
    zeros = torch.zeros(41, 3)
    emulation.begin()
    losses, grads = ops.bce_kl(emulation, p, t, zeros, zeros, from_logits=False, ups=(Up(), Up()))
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
        nll, _ = ops.bernoulli(emulation, logits, target, reduction="none")
        assert torch.equal(nll / 1024.0, target[:, 0].to(dtype) / 255.0)


def test_clamps_of_probabilities_are_torchs(emulation: Emulator):
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1e-30, 0.5, math.nan]])
    t = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.5]])
    emulation.begin()
    nll, grad = ops.bernoulli(emulation, p.T, t.T, from_logits=False, reduction="none", up=Up())
    leaf = p.T.clone().requires_grad_()
    expected = reference.bernoulli_nll_terms(leaf, t.T, False)
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
    nll, grad = ops.bernoulli(emulation, x.T, t.T, reduction="none", up=Up())
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
    nll, _ = ops.bernoulli(emulation, empty, empty, reduction=reduction, up=Up())
    expected = reference.bernoulli_nll(empty, empty, reduction)
    torch.testing.assert_close(nll, expected, equal_nan=True)
    emulation.begin()
    losses, grads = ops.bce_kl(
        emulation, empty, empty, latents, latents, reduction=reduction, ups=(Up(), Up())
    )
    right = reference.bce_kl_loss(empty, empty, latents, latents, 1.0, reduction)
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
        losses, grads = ops.bce_kl(
            emulation, x, t, mu, logvar, reduction=reduction, ups=(Up(), Up())
        )
        results.add(tuple(r.numpy().tobytes() for r in (*losses, *grads)))
    assert len(results) == 1


def test_both_extents_take_one_launch_and_the_sums_at_most_one_more(emulation: Emulator):
    for shape, latents, launches in [((3, 5), 2, 1), ((128, 784), 20, 2), ((512, 784), 64, 2)]:
        x, t = scores(shape, torch.float32, True), targets(shape, torch.float32)[0]
        mu = torch.zeros(shape[0], latents)
        emulation.begin()
        ops.bce_kl(emulation, x, t, mu, mu, ups=(Up(), Up()))
        assert emulation.launches == launches
        emulation.begin()
        ops.bce_kl(emulation, x, t, mu, mu, value=False, ups=(Up(), Up()))
        assert emulation.launches == 1


def test_error_is_at_most_twice_eagers(emulation: Emulator):
    """Each row's nll and each gradient; the arithmetic is the host's, the formulas the kernels'."""
    shape, dtype = (64, 401), torch.float32
    x, t = scores(shape, dtype, True), targets(shape, dtype)[0]
    emulation.begin()
    nll, grad = ops.bernoulli(emulation, x, t, reduction="none", up=Up())
    leaf = x.clone().requires_grad_()
    eager = F.binary_cross_entropy_with_logits(leaf, t, reduction="none").sum(1)
    (eager_grad,) = torch.autograd.grad(eager.sum(), leaf)
    right, right_grad = nll_and_grad(x, t, True, torch.ones(shape[0], 1))
    for found, peer, truth in ((nll, eager, right), (grad, eager_grad, right_grad)):
        worst = (found.double() - truth).abs().max()
        peers = (peer.double() - truth).abs().max()
        assert worst <= 2 * peers + torch.finfo(dtype).eps * truth.abs().max()
