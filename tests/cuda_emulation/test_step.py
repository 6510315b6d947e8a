"""A training step's own kernels on the host: the plain PyTorch of ``vae_fast.ops.step`` in float64's
values, in any order and at any alignment."""

from __future__ import annotations

import math

import pytest
import torch

from tests.cuda_emulation import ops
from tests.cuda_emulation.emulator import Emulator
from vae_fast import reference

KEY = torch.tensor([77, -5])
ORDERS = ((0, 0), (1, 1), (2, 3))


def close(found: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> None:
    ops.accuracy(found, right.double(), scale=max(scale, float(right.abs().max())))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (128, 20), (7, 33)])
def test_the_sample_and_its_gradient(emulation: Emulator, shape: tuple[int, int]):
    """mu and logvar are two halves of one tensor; the noise is that of a contiguous sample."""
    generator = torch.Generator().manual_seed(shape[1])
    heads = torch.randn(shape[0], 2 * shape[1], generator=generator)
    grad = torch.randn(shape, generator=generator)
    beta, scale = torch.tensor(0.7), 1.0 / shape[0]
    mu, logvar = heads.double().tensor_split(2, 1)
    eps = reference.normal(KEY, shape, torch.float64)
    sigma, weight = torch.exp(0.5 * logvar), 0.7 * scale
    right = torch.cat(
        [
            grad.double() + mu * weight,
            0.5 * sigma * eps * grad.double() + 0.5 * torch.expm1(logvar) * weight,
        ],
        1,
    )
    for order, offset in ORDERS:
        emulation.begin(order, offset)
        close(ops.step_sample(emulation, heads, KEY), mu + sigma * eps, 8.0)
        assert emulation.launches == 1
        emulation.begin(order, offset)
        found = ops.step_sample_backward(emulation, grad, heads, KEY, beta, scale)
        close(found, right, 8.0)


def decision(rows=37, latent=5, **options):
    """Inputs of a decision: gradients in three parts with gaps, and columns of two biases."""
    generator = torch.Generator().manual_seed(rows)
    gradients = torch.randn(9000, generator=generator)
    ranges = [(0, 4097), (4112, 3), (4128, 1)]
    columns = [(4160, torch.randn(rows, 70, generator=generator))]
    columns += [(4240, torch.randn(rows, 1, generator=generator))]
    given = {
        "gradients": gradients,
        "ranges": ranges,
        "columns": columns,
        "recon": torch.tensor(90.5),
        "heads": torch.randn(rows, 2 * latent, generator=generator),
        "beta": torch.tensor(0.5),
        "steps": torch.tensor(6.0),
        "usual": torch.tensor([3.0, 60.0, 1.0]),
        "sums": torch.tensor([5.0, 4.0, 2.0, 64.0], dtype=torch.float64),
        "rows": rows,
        "guard": (2.0, 0.0, 3.0, 50.0, 0.02),
    }
    return {**given, **options}


def decided(given):
    """The truth in float64: gradients, [norm, skipped, divisor, rests], usual, steps, sums."""
    gradients = given["gradients"].double()
    squares = sum(float(gradients[b : b + n].square().sum()) for b, n in given["ranges"])
    for place, part in given["columns"]:
        gradients[place : place + part.shape[1]] = part.double().sum(0)
        squares += float(part.double().sum(0).square().sum())
    kl = 0.0
    if given["heads"] is not None:
        mu, logvar = given["heads"].double().tensor_split(2, 1)
        kl = float(0.5 * (torch.expm1(logvar) - logvar + mu.square()).sum()) / given["rows"]
    recon = given["recon"].item()
    loss = recon + given["beta"].item() * kl
    norm = math.sqrt(squares) if math.isfinite(loss) else math.nan
    clip, skip_above, patience, settling, followed = given["guard"]
    mean, taken, in_row = given["usual"].tolist()
    active = skip_above > 0 and taken >= settling and in_row < patience
    skipped = not norm <= (skip_above * mean if active else torch.finfo(torch.float32).max)
    if skip_above > 0:
        taken += not skipped
        mean += 0.0 if skipped else max(1 / taken, followed) * (norm - mean)
        in_row = in_row + 1 if skipped else 0.0
    steps = given["steps"].item() + (not skipped)
    terms = torch.tensor([loss, recon, kl, 1.0], dtype=torch.float64)
    sums = given["sums"] if skipped else given["sums"] + given["rows"] * terms
    outcome = [norm, float(skipped), max(1.0, norm / clip) if clip > 0 else 1.0]
    outcome += [1 - 0.9**steps, 1 - 0.999**steps]
    return gradients, torch.tensor(outcome), torch.tensor([mean, taken, in_row]), steps, sums


CASES = {
    "taken, brought down": {},
    "no KL": {"heads": None, "guard": (0.0, 0.0, 3.0, 50.0, 0.02)},
    "usual": {"guard": (0.0, 90.0, 3.0, 50.0, 0.02)},
    "above the usual": {"guard": (0.0, 5.0, 3.0, 50.0, 0.02)},
    "for too long": {"guard": (0.0, 5.0, 1.0, 50.0, 0.02)},
    "not settled": {"guard": (0.0, 5.0, 3.0, 61.0, 0.02)},
    "its first": {"guard": (0.0, 5.0, 3.0, 50.0, 0.02), "usual": torch.zeros(3)},
    "loss not finite": {"recon": torch.tensor(math.inf), "guard": (1.0, 5.0, 3.0, 50.0, 0.02)},
    "one row": {"rows": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_sums_and_what_is_decided(emulation: Emulator, name: str):
    options = dict(CASES[name])
    given = decision(options.pop("rows", 37), **options)
    gradients, outcome, usual, steps, sums = decided(given)
    first = None
    for order, offset in ORDERS:
        emulation.begin(order, offset)
        found = ops.step_decide(emulation, **given)
        assert emulation.launches == 1
        close(found["gradients"], gradients, 4.0)
        untouched = torch.ones(len(gradients), dtype=torch.bool)
        for place, part in given["columns"]:
            untouched[place : place + part.shape[1]] = False
        assert torch.equal(found["gradients"][untouched], given["gradients"][untouched])
        assert torch.allclose(
            found["outcome"].double(), outcome.double(), rtol=1e-6, equal_nan=True
        )
        assert torch.allclose(found["usual"], usual.float(), rtol=1e-6)
        assert found["steps"].item() == steps
        assert torch.allclose(found["sums"], sums, rtol=1e-6)
        first = first or found
        for key, value in found.items():
            bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (value, first[key])]
            assert torch.equal(*bits), key


def test_with_no_counter_left_a_second_launch_decides(emulation: Emulator):
    emulation.lib.emulation_capturing(1)
    given = decision()
    try:
        while emulation.lib.emulated_counter(None) >= 0:
            pass
        emulation.begin()
        found = ops.step_decide(emulation, **given)
    finally:
        emulation.lib.emulation_capturing(0)
    assert emulation.launches == 2
    assert torch.allclose(found["outcome"].double(), decided(given)[1].double(), rtol=1e-6)


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("average", [None, 0.02, 0.75])
@pytest.mark.parametrize("kind", ["adam", "adamw", "maximise"])
def test_the_optimizer(emulation: Emulator, kind: str, average: float | None, skipped: bool):
    """Equal to torch's Adam and AdamW with the divided gradients."""
    generator = torch.Generator().manual_seed(3)
    n, count = 1031, 5
    weights, gradients, first = (torch.randn(n, generator=generator) for _ in range(3))
    second = torch.rand(n, generator=generator)
    followed = None if average is None else torch.randn(n, generator=generator)
    options = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    options["maximize"] = kind == "maximise"
    parameter = torch.nn.Parameter(weights.double())
    kinds = {"adamw": torch.optim.AdamW}
    optimizer = kinds.get(kind, torch.optim.Adam)([parameter], lr=0.01, **options)
    optimizer.state[parameter] = {
        "step": torch.tensor(count - 1.0),
        "exp_avg": first.double(),
        "exp_avg_sq": second.double(),
    }
    parameter.grad = gradients.double() / 1.5
    if not skipped:
        optimizer.step()
    state = optimizer.state[parameter]
    outcome = torch.tensor([3.0, float(skipped), 1.5, 1 - 0.9**count, 1 - 0.99**count])
    if average is not None:
        right_average = torch.lerp(followed.double(), parameter.detach(), average)
    for order, offset in ORDERS:
        emulation.begin(order, offset)
        found = ops.step_update(
            emulation, weights, gradients, first, second, followed, outcome, 0.01, average or 0.0,
            decoupled=kind == "adamw", **options,
        )  # fmt: skip
        assert emulation.launches == 1
        close(found[0], parameter.detach())
        close(found[1], state["exp_avg"])
        close(found[2], state["exp_avg_sq"])
        if average is not None:
            close(found[3], right_average)
