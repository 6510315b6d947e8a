"""Parameters written out in full, as the CUDA kernels need them: same values and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import NATIVE

if not NATIVE:
    pytest.skip("the kernels are not built", allow_module_level=True)
from vae_fast import reference
from vae_fast.likelihoods import SPECS
from vae_fast.ops.likelihood import _prepare, flat

GENERATOR = torch.Generator().manual_seed(5)


def given(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    return SPECS[name].inputs(shape, dtype, GENERATOR)


def calls() -> list[tuple[str, list[torch.Tensor], torch.Tensor]]:
    """(likelihood, parameters, target) in every form that only the CPU's kernels read directly."""
    (loc, log_scale), x = given("gaussian", (3, 4, 5, 2))
    found = [
        ("gaussian", [loc, log_scale], x),
        ("gaussian", [loc.to(memory_format=torch.channels_last), log_scale], x),
        ("gaussian", [loc, log_scale[0, :, :1, :1]], x),  # a scale of each channel
        ("gaussian", [loc, log_scale[0, 0, 0, 0]], x),
        ("gaussian", [loc[:1], log_scale[:, :1]], x),
        ("gaussian", [torch.cat([loc, log_scale], 1)], x),
        ("gaussian", [loc[0, 0, 0], log_scale[0, 0, 0, :1]], x[0, 0, 0]),  # one sample, 1-D
        ("gaussian", [loc.bfloat16(), log_scale[0].bfloat16()], x.double()),
    ]
    (rate, dispersion, zeros), counts = given("zero_inflated_negative_binomial", (4, 7))
    zinb = [rate, dispersion[0], zeros]
    found += [
        ("zero_inflated_negative_binomial", zinb, counts.to(dtype))
        for dtype in (torch.int64, torch.float16, torch.int16)
    ]
    (logits,), t = given("bernoulli", (2, 9))
    found += [
        ("bernoulli", [torch.stack([logits, -logits, 2 * logits])], t),  # K sets
        ("bernoulli", [logits.half()], t.bfloat16()),
        ("bernoulli", [logits.half()], t.half()),
        ("bernoulli", [logits], t.double()),
        ("bernoulli", [logits], (t * 255).to(torch.uint8)),
        ("bernoulli", [logits[:0]], t[:0]),
    ]
    return found


@pytest.mark.parametrize("reads_half", [True, False])
def test_values_and_gradients_are_the_same(reads_half: bool):
    for name, params, target in calls():
        spec = SPECS[name]
        params = [p.detach().requires_grad_() for p in params]
        shaped, t = flat(*_prepare(spec, params, target), len(spec.params), reads_half)
        assert len(shaped) == len(spec.params)
        for p in shaped:
            assert p.shape == t.shape and p.stride() == t.stride()
            assert p.dtype in (torch.float32, torch.float64) or reads_half
        assert t.dtype in (shaped[0].dtype, torch.float32, torch.uint8, torch.bool)
        found = reference.nll_terms(spec, shaped, t).sum()
        right = reference.nll(spec, params, target, "none").sum()
        torch.testing.assert_close(found, right)
        grads = torch.autograd.grad(found, params), torch.autograd.grad(right, params)
        for grad, expected in zip(*grads, strict=True):
            torch.testing.assert_close(grad, expected)
