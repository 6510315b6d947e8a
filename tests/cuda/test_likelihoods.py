"""Every likelihood on a GPU, in every form that its kernels read or have written out, against float64."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.conftest import NATIVE

if not NATIVE:
    pytest.skip("the kernels are not built", allow_module_level=True)
import vae_fast
from tests.ops.test_flat import calls
from vae_fast import reference
from vae_fast.likelihoods import SPECS

pytestmark = pytest.mark.cuda


def check(gpu: torch.device, name: str, params: list[torch.Tensor], target: torch.Tensor) -> None:
    spec = SPECS[name]
    leaves = [p.detach().to(gpu).requires_grad_() for p in params]
    wide = [p.detach().double().requires_grad_() for p in params]
    right = reference.nll(spec, wide, target, "sum")
    grads = torch.autograd.grad(right, wide)
    mu = torch.linspace(-1, 1, 3 * len(target)).view(-1, 3)
    with vae_fast.set_backend("native"), warnings.catch_warnings():
        warnings.simplefilter("error")
        value = vae_fast.nll(spec, leaves, target.to(gpu))
        found = torch.autograd.grad(value, leaves)
        if target.dim() >= 2:
            out = vae_fast.elbo(spec, leaves, target.to(gpu), mu.to(gpu), mu.to(gpu))
            torch.testing.assert_close(out.recon, value)
    tolerance = 2e-2 if params[0].element_size() == 2 else 1e-4
    torch.testing.assert_close(value.double().cpu(), right.detach(), rtol=tolerance, atol=tolerance)
    for a, b in zip(found, grads, strict=True):
        size = tolerance * float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double().cpu(), b, rtol=tolerance, atol=size)


@pytest.mark.parametrize("name", SPECS)
def test_every_likelihood(gpu: torch.device, name: str):
    """Also those over planes, which have no CUDA kernel: plain PyTorch computes them, silently."""
    spec = SPECS[name]
    shape = (5, 3, 7, 9) if spec.planes == 3 else (5, 299)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        params, target = spec.inputs(shape, dtype, torch.Generator().manual_seed(3))
        check(gpu, name, params, target)


def test_what_is_shared_or_stacked_and_targets_of_other_dtypes(gpu: torch.device):
    for name, params, target in calls():
        if params[0].dim() <= target.dim():  # sets of samples have a function of their own
            check(gpu, name, params, target)
