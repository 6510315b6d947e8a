"""The autoencoder with latent maps on a GPU: right, channels-last from end to end, and with
checkpointing smaller.
"""

import pytest
import torch

import vae_fast
from vae_fast import noise
from vae_fast.models import build

pytestmark = pytest.mark.cuda

OPTIONS = {
    "channels": 32, "multipliers": [1, 2, 2], "groups": 8, "attention": [16], "likelihood": "gaussian",
    "likelihood_options": {"variance": "shared", "scale": 0.3},
}  # fmt: skip


def made(**options):
    torch.manual_seed(0)
    model = build("autoencoder-kl", (3, 64, 64), **{**OPTIONS, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def images(n=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("level", ["none", "norms", "blocks"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 0.05)])
def test_loss_and_gradients_are_those_of_float64(level, dtype, tolerance):
    key = noise.new_key()
    exact = made().double()
    with vae_fast.set_backend("reference"):
        expected = exact.loss(images(), noise_key=key)
    expected.loss.backward()
    model = made(checkpointing=level).cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model.loss(images().cuda(), noise_key=key.cuda())
    out.loss.backward()
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (p.grad.cpu().double() - q.grad).norm()
        assert error <= 4 * tolerance * q.grad.norm() + 1e-6 * expected.loss, name


def test_maps_are_channels_last():
    model, layouts = made().cuda(), []
    for block in model.blocks():
        block.register_forward_hook(
            lambda _, inputs, output: layouts.append(
                output.is_contiguous(memory_format=torch.channels_last)
            )
        )
    with torch.autocast("cuda", torch.bfloat16):
        model.loss(images().cuda())
    assert len(layouts) == len(model.blocks()) and all(layouts)


def test_each_level_of_checkpointing_lowers_the_peak():
    peaks = []
    for level in ("none", "norms", "blocks"):
        model, x = made(checkpointing=level).cuda(), images(32).cuda()
        for _ in range(2):  # cuDNN's first choice of algorithms takes workspaces
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                model.loss(x).loss.backward()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            model.zero_grad()
        peaks.append(peak)
    assert peaks[0] > peaks[1] > peaks[2]
