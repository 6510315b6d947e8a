"""More than 2^31 elements: indices are 64 bits wide before anything is multiplied."""

from __future__ import annotations

import pytest
import torch

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods.bernoulli import BERNOULLI

pytestmark = pytest.mark.cuda

ROWS, COLS = 3, 2**30 + 7  # the last row lies wholly beyond 2^31, and no row after the first is
GIB = 2**30  # aligned


def needs(gibibytes: float) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory, {free / GIB:.0f} are free")


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_bernoulli(gpu: torch.device, reduction: str):
    """bfloat16 logits and uint8 targets: 6 GiB, 3 GiB, and 6 GiB of gradients."""
    needs(18)
    logits = torch.zeros(ROWS, COLS, dtype=torch.bfloat16, device=gpu)
    target = torch.zeros(ROWS, COLS, dtype=torch.uint8, device=gpu)
    # All elements say log 2; these few, at the far ends of rows, say something else.
    places = [(0, 0), (0, COLS - 1), (1, 0), (2, 1), (2, COLS - 1)]
    for number, (row, col) in enumerate(places):
        logits[row, col] = 8.0 + number
        target[row, col] = 51
    logits.requires_grad_()
    nll = vae_fast.bernoulli_nll(logits, target, reduction=reduction)
    (grad,) = torch.autograd.grad(nll.sum(), logits)

    expected = torch.full((ROWS,), COLS * torch.tensor(2.0).double().log().item()).double()
    for number, (row, col) in enumerate(places):
        x = torch.tensor([8.0 + number]).double()
        term = reference.nll_terms(BERNOULLI, [x], torch.tensor([0.2]).double())
        expected[row] += term.item() - torch.tensor(2.0).double().log().item()
        right = torch.sigmoid(x) - 0.2
        assert grad[row, col].item() == pytest.approx(right.item(), rel=2**-8)
    if reduction == "sum":
        assert nll.item() == pytest.approx(expected.sum().item(), rel=1e-6)
    else:
        torch.testing.assert_close(nll.double().cpu(), expected, rtol=1e-6, atol=0)
    for row, col in [(0, 1), (1, COLS - 1), (2, COLS // 2)]:
        assert grad[row, col].item() == 0.5


def test_noise_of_far_elements_depends_on_their_index(gpu: torch.device):
    """Element i takes word i mod 4 of counter i div 4, beyond 2^31 too."""
    needs(20)
    n = 2**31 + 4099
    zeros = torch.zeros(1, dtype=torch.bfloat16, device=gpu).expand(n)
    key = torch.tensor([3, 4], device=gpu)
    z = vae_fast.reparameterize(zeros, zeros, noise_key=key)
    for start in (0, 2**31 - 8, n - 12):
        start -= start % 4
        block = torch.arange(start // 4, start // 4 + 3)
        mask = 2**32 - 1
        words = reference.philox(
            [
                block & mask,
                block >> 32,
                torch.full_like(block, 4),
                torch.zeros_like(block),
            ],
            [torch.tensor(3), torch.tensor(0)],
        )
        pairs = torch.stack(words, 1).reshape(-1, 2).double()
        radius = torch.sqrt(-2.0 * torch.log((pairs[:, 0] + 0.5) / 2**32))
        angle = 2 * torch.pi * pairs[:, 1] / 2**32
        expected = torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten()
        found = z[start : start + 12].double().cpu()
        torch.testing.assert_close(found, expected[: found.numel()], rtol=2**-8, atol=1e-3)
