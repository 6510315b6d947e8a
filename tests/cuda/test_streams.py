"""Any stream, any device, a busy GPU: the same bits."""

from __future__ import annotations

import pytest
import torch

import vae_fast
from tests.cuda.losses import everything, inputs, same_bits

pytestmark = pytest.mark.cuda

KEY = [1234567890123456789, -987654321]


@pytest.mark.parametrize("reduction", ["sum", "batchmean", "none"])
def test_a_stream_of_the_callers(gpu: torch.device, reduction: str):
    key = torch.tensor(KEY, device=gpu)
    expected = everything(inputs(gpu), key, reduction)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The inputs arrive late on this stream: a kernel on another one would read garbage.
        late = [torch.zeros_like(t) for t in inputs(gpu)]
        torch.cuda._sleep(20_000_000)
        for destination, source in zip(late, inputs(gpu), strict=True):
            destination.copy_(source)
        found = everything(late, key, reduction)
    torch.cuda.current_stream().wait_stream(stream)
    assert same_bits(found, expected)


def test_the_second_gpu(gpu: torch.device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    expected = everything(inputs(gpu), torch.tensor(KEY, device=gpu))
    found = everything(inputs(other), torch.tensor(KEY, device=other))
    assert all(t.device == other for t in found)
    assert torch.cuda.current_device() == gpu.index
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert same_bits([t.cpu() for t in found], [t.cpu() for t in expected])


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_load_does_not_change_a_bit(gpu: torch.device, reduction: str):
    """The problem's size fixes the order of a sum, whatever order blocks finish in."""
    tensors, key = inputs(gpu, rows=2048), torch.tensor(KEY, device=gpu)
    expected = everything(tensors, key, reduction)
    noise = torch.randn(2048, 2048, device=gpu)
    stream = torch.cuda.Stream()
    for _ in range(5):
        with torch.cuda.stream(stream):
            for _ in range(20):
                noise = torch.tanh(noise @ noise)
        assert same_bits(everything(tensors, key, reduction), expected)


def test_gpu_and_cpu_agree(gpu: torch.device):
    key = torch.tensor(KEY)
    found = everything(inputs(gpu), key.to(gpu))
    expected = everything(inputs(torch.device("cpu")), key)
    for f, e in zip(found, expected, strict=True):
        # The draws' logarithm near 1 is coarse in float32 on either side: see test_noise.py.
        torch.testing.assert_close(f.cpu(), e, rtol=2e-5, atol=2e-4)


def test_inputs_on_two_devices_are_refused(gpu: torch.device):
    x, target, mu, logvar = inputs(gpu, rows=3)
    with pytest.raises(ValueError, match="cpu"):
        vae_fast.bernoulli_nll(x, target.cpu())
    with pytest.raises(ValueError, match="cpu"):
        vae_fast.bce_kl_loss(x, target, mu.cpu(), logvar.cpu())
    with pytest.raises(ValueError, match="noise_key"):
        vae_fast.reparameterize(mu, logvar, noise_key=torch.tensor(KEY))
