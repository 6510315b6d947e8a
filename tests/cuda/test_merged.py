"""The step of few launches on a GPU: its own ops beside plain PyTorch, and what it launches."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.cuda_emulation.test_step import decided, decision
from vae_fast import reference
from vae_fast.models import build
from vae_fast.train import OptimizerConfig, TrainConfig
from vae_fast.train.captured import CapturedStep, CudaGraph
from vae_fast.train.distributed import Share, World
from vae_fast.train.merged import merged
from vae_fast.train.step import Step

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda")


def test_the_sample_and_its_gradient_are_plain_pytorchs():
    heads, grad = torch.randn(128, 40), torch.randn(128, 20)
    key, beta = torch.tensor([3, -4]), torch.tensor(0.5)
    ops = torch.ops.vae_fast
    for op, arguments in (
        (ops.step_sample, (heads, key)),
        (ops.step_sample_backward, (grad, heads, key, beta, 1 / 128)),
    ):
        there = [t.cuda() if isinstance(t, torch.Tensor) else t for t in arguments]
        assert torch.allclose(op(*there).cpu(), op(*arguments), rtol=1e-5, atol=1e-6)
    assert torch.allclose(
        ops.step_sample(heads.cuda(), key.cuda()).cpu(),
        reference.reparameterize(*heads.tensor_split(2, 1), None, key),
        rtol=1e-5,
        atol=1e-6,
    )


def test_decisions_are_those_of_float64():
    given = decision()
    gradients, outcome, usual, steps, sums = decided(given)
    there = {k: v.cuda() for k, v in given.items() if isinstance(v, torch.Tensor)}
    found = torch.ops.vae_fast.step_decide(
        there["gradients"],
        [n for pair in given["ranges"] for n in pair],
        [t.cuda() for _, t in given["columns"]],
        [place for place, _ in given["columns"]],
        *(there[name] for name in ("recon", "heads", "beta", "steps", "usual", "sums")),
        given["rows"],
        list(given["guard"]),
        0.9,
        0.999,
    )
    assert torch.allclose(found.cpu(), outcome, rtol=1e-5)
    assert torch.allclose(there["gradients"].cpu().double(), gradients, rtol=1e-5, atol=1e-5)
    assert torch.allclose(there["usual"].cpu(), usual, rtol=1e-5)
    assert there["steps"].item() == steps
    assert torch.allclose(there["sums"].cpu(), sums, rtol=1e-6)


def step_of(**options) -> Step:
    torch.manual_seed(0)
    config = TrainConfig(model="vae", lr=1e-3, runner="eager", device="cuda", epochs=1, **options)
    model = build("vae", (1, 28, 28), latent_dim=20).cuda()
    return Step(model, config, CUDA, World(), 100)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_sixty_steps_agree_with_eager_steps(precision):
    """More steps than the guard needs to know the usual norm, so that it decides."""
    images = torch.randint(0, 256, (128, 1, 28, 28), dtype=torch.uint8, device="cuda")
    options = {"ema": 0.9, "optimizer": OptimizerConfig(clip_norm=50.0, skip_above=5.0)}
    options["precision"] = precision
    of_loss, of_norm = (1e-3, 1e-2) if precision == "fp32" else (1e-2, 5e-2)
    found = []
    for few in (True, False):
        step = step_of(**options)
        if few:
            step.runner = CapturedStep(step.take, CudaGraph(CUDA), step.model, merged(step))
        torch.manual_seed(1)
        for number in range(60):
            step(Share(images, None), number)
        assert not few or step.runner.is_captured
        found.append((step.meter.read()[0]["loss"], step.read_guards()))
    assert found[0][0] == pytest.approx(found[1][0], rel=of_loss)
    skipped = [guards["skipped"] for _, guards in found]
    if precision == "fp16":  # its scale may have to shrink at first
        assert abs(skipped[0] - skipped[1]) <= 1 and max(skipped) < 10
    else:
        assert skipped == [0, 0]
    assert found[0][1]["grad_norm"] == pytest.approx(found[1][1]["grad_norm"], rel=of_norm)


def test_kernels_of_a_step_of_the_tutorials_vae():
    """20 ops. The message gives the count: cuBLAS may run two kernels for one product."""
    step = step_of(ema=0.9, optimizer=OptimizerConfig(clip_norm=1.0, skip_above=5.0))
    take = merged(step).take
    share = Share(torch.zeros(128, 1, 28, 28, dtype=torch.uint8, device="cuda"), None)
    step.set_schedule_values(0)
    for _ in range(3):
        take(share)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        take(share)
        torch.cuda.synchronize()
    kernels = [e.name for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    print(f"{len(kernels)} kernels:", *kernels, sep="\n  ")
    assert 16 <= len(kernels) <= 26, kernels
