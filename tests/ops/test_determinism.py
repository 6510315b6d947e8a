"""The same bits every time, for every number of threads, with activation checkpointing."""

import functools
import hashlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.ops.accuracy import call
from vae_fast import bce_kl_loss, bernoulli_nll, gaussian_kl, noise, reparameterize, sample_and_kl

KEY = torch.tensor([1234567890123456789, -987654321])
ROWS, IMAGE, LATENT = 131, 601, 503  # beyond what wakes a thread, and divisible by nothing


@functools.cache  # torch's own sigmoid does depend on the number of threads
def inputs(dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, IMAGE, generator=generator).to(dtype)
    target = torch.randint(256, (ROWS, IMAGE), generator=generator, dtype=torch.uint8)
    mu, logvar, prior = (torch.randn(ROWS, LATENT, generator=generator) for _ in range(3))
    return x, torch.sigmoid(x), target, mu.to(dtype), logvar.to(dtype), prior.to(dtype)


def everything(dtype, reduction):
    """Every value and gradient of every op."""
    x, p, target, mu, logvar, prior = inputs(dtype)
    kwargs = {"reduction": reduction}
    calls = [
        (lambda *a: bernoulli_nll(*a, target, **kwargs), [x]),
        (lambda *a: bernoulli_nll(*a, target, from_logits=False, **kwargs), [p]),
        (lambda *a: gaussian_kl(*a, **kwargs), [mu, logvar]),
        (lambda *a: gaussian_kl(*a, **kwargs), [mu, logvar, prior, -prior]),
        (lambda *a: sample_and_kl(*a, noise_key=KEY, **kwargs), [mu, logvar]),
        (lambda *a: sample_and_kl(*a, noise_key=KEY, **kwargs), [mu, logvar, prior, -prior]),
        (lambda *a: reparameterize(*a, noise_key=KEY), [mu, logvar]),
        (lambda *a: reparameterize(*a, num_samples=3, noise_key=KEY), [mu, logvar]),
        (lambda x, *a: tuple(bce_kl_loss(x, target, *a, **kwargs)), [x, mu, logvar]),
    ]
    results = []
    for op, arguments in calls:
        values, grads = call(op, arguments)
        results += [*values, *grads]
    return results


def digests(tensors):
    views = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [
        hashlib.sha256(t.contiguous().view(views[t.element_size()]).numpy().tobytes()).hexdigest()
        for t in tensors
    ]


def test_threads_do_not_change_a_bit(cpu_level, dtype, reduction, threads):
    threads(1)
    want = digests(everything(dtype, reduction))
    for count in (2, 3, 5):
        threads(count)
        assert digests(everything(dtype, reduction)) == want, f"{count} threads"


def test_seed_decides_everything(backend, threads):
    threads(2)
    runs = []
    for _ in range(2):
        torch.manual_seed(11)
        *_, mu, logvar, _ = inputs(torch.float32)
        runs.append(digests([*sample_and_kl(mu, logvar), reparameterize(mu, logvar)]))
    assert runs[0] == runs[1]


def test_checkpointing_recomputes_the_same_noise(backend):
    """The gradient of the recomputed draw is that of the draw that was used."""
    weight = torch.randn(40, 40, requires_grad=True)
    x = torch.randn(16, 40)

    def block(x):
        mu, logvar = (x @ weight).chunk(2, 1)
        z, kl = sample_and_kl(mu, logvar)
        return torch.cat([z, reparameterize(mu, logvar)], 1).square().sum() + kl

    results = []
    for wrap in (lambda x: block(x), lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(7)
        loss = wrap(x)
        (grad,) = torch.autograd.grad(loss, weight)
        results.append((loss.detach(), grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_generator_state_advances_as_with_randn(backend):
    """One draw of a key a call: what follows differs from what came before."""
    mu = torch.zeros(2, 3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    reparameterize(mu, mu)
    assert not torch.equal(torch.get_rng_state(), before)
    state = torch.get_rng_state()
    reparameterize(mu, mu, noise_key=KEY)  # a given key leaves the generator alone
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.cuda
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_repeatable_on_a_busy_gpu(native, reduction):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    device = "cuda"
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2048, 1217, generator=generator).to(device)
    target = torch.randint(256, (2048, 1217), dtype=torch.uint8).to(device)
    mu = torch.randn(2048, 403, generator=generator).to(device)
    key = noise.new_key(device)

    def run():
        out = bce_kl_loss(x, target, mu, mu, reduction=reduction)
        return [*out, *sample_and_kl(mu, mu, noise_key=key, reduction=reduction)]

    want = [t.clone() for t in run()]
    for _ in range(20):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x @ x.t()
        assert all(torch.equal(a, b) for a, b in zip(run(), want, strict=True))
