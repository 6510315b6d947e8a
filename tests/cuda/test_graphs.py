"""CUDA graphs: captured once, replayed with new inputs and fresh noise; and torch.compile."""

from __future__ import annotations

import pytest
import torch

import vae_fast
from tests.cuda.losses import everything, inputs, same_bits
from vae_fast import noise

pytestmark = pytest.mark.cuda


def captured(function):
    """Run `function` on a side stream, as torch requires, then capture it in a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def test_replay_reads_the_current_inputs_and_key(gpu: torch.device):
    tensors = inputs(gpu)
    key = torch.tensor([1, 2], device=gpu)
    graph, results = captured(lambda: everything(tensors, key))
    for seed in range(3):
        tensors[0].normal_()
        tensors[2].normal_()
        key.copy_(torch.tensor([seed, -seed]))
        graph.replay()
        assert same_bits(results, everything(tensors, key))


def test_each_replay_has_noise_of_its_own(gpu: torch.device):
    mu, logvar = torch.zeros(2, 1000, 20, device=gpu).unbind(0)
    graph, results = captured(lambda: [*vae_fast.sample_and_kl(mu, logvar)])
    seen = []
    for _ in range(4):
        graph.replay()
        seen.append(results[0].clone())
    for i, a in enumerate(seen):
        assert 0.95 < a.std() < 1.05
        for b in seen[:i]:
            assert not torch.equal(a, b)
            assert (a * b).mean().abs() < 0.05, "draws of two replays are correlated"


def test_a_seed_fixes_the_replays(gpu: torch.device):
    mu, logvar = torch.zeros(2, 10, 20, device=gpu).unbind(0)
    graph, results = captured(lambda: [vae_fast.reparameterize(mu, logvar)])

    def draws() -> list[torch.Tensor]:
        torch.cuda.manual_seed(7)
        drawn = []
        for _ in range(3):
            graph.replay()
            drawn.append(results[0].clone())
        return drawn

    assert same_bits(draws(), draws())


def test_a_training_step_in_a_graph(gpu: torch.device):
    """Loss and gradients of a captured step are those of the same step run eagerly."""
    torch.manual_seed(0)
    _, target, mu, logvar = inputs(gpu, rows=128, image=784, latent=20)
    weight = torch.randn(20, 784, device=gpu, requires_grad=True)
    key = noise.new_key(gpu)

    def step() -> list[torch.Tensor]:
        z, _ = vae_fast.sample_and_kl(mu, logvar, noise_key=key)
        out = vae_fast.bce_kl_loss(z @ weight, target, mu, logvar, reduction="batchmean")
        return [out.loss.detach(), *torch.autograd.grad(out.loss, weight)]

    graph, results = captured(step)
    mu.add_(0.5)
    graph.replay()
    torch.testing.assert_close(results, step())


def test_compiled_is_equal_to_eager(gpu: torch.device):
    tensors, key = inputs(gpu, rows=64), torch.tensor([1, 2], device=gpu)

    def step(x, target, mu, logvar):
        z, kl = vae_fast.sample_and_kl(mu, logvar, noise_key=key)
        loss = vae_fast.bce_kl_loss(x, target, mu, logvar, beta=0.5, reduction="batchmean").loss
        return loss + z.square().mean() + kl

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaves = [tensors[0], *tensors[2:]]
        x, mu, logvar = (t.detach().requires_grad_() for t in leaves)
        loss = function(x, tensors[1], mu, logvar)
        results.append([loss.detach(), *torch.autograd.grad(loss, (x, mu, logvar))])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
