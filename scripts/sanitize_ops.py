"""Every CUDA op once, forward and backward, for compute-sanitizer to watch.

Small, because the sanitizer slows kernels a hundredfold, and awkward on purpose: odd sizes, one
element, views that are not 16-byte aligned, every dtype. Inputs come from the CPU by copy and not
from torch's own kernels, so that initcheck sees where they were written. Values are compared with
the reference as well, so that a run which computed nothing fails.

    compute-sanitizer --tool memcheck python3 scripts/sanitize_ops.py
"""

from __future__ import annotations

import itertools
import sys

import torch

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods import SPECS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 5), (7, 33), (2, 1031), (5, 3, 9))
REDUCTIONS = ("sum", "batchmean", "none")


def on_gpu(values: torch.Tensor, offset: int) -> torch.Tensor:
    """A leaf on the GPU that starts `offset` elements into its allocation."""
    flat = torch.cat([values.new_zeros(offset), values.reshape(-1)]).cuda()
    return flat[offset:].view(values.shape).detach()


def finite(*tensors: torch.Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is not None and bool(tensor.isfinite().all()), "a value is not finite"


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare within the dtype's precision. The project's tests are much stricter."""
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 2e-2)
    torch.testing.assert_close(
        found.double().cpu(), expected.double().cpu(), rtol=tolerance, atol=tolerance
    )


def check(shape: tuple[int, ...], dtype: torch.dtype, reduction: str, offset: int) -> None:
    generator = torch.Generator().manual_seed(len(shape) * 1000 + shape[-1])

    def gaussian() -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    mu, logvar, prior_mu, prior_logvar = (
        on_gpu(gaussian(), offset).requires_grad_() for _ in range(4)
    )
    key = torch.tensor([123, -4], dtype=torch.int64).cuda()

    z = vae_fast.reparameterize(mu, logvar, noise_key=key)
    finite(z, *torch.autograd.grad(z.sum(), (mu, logvar)))
    draws = vae_fast.reparameterize(mu, logvar, num_samples=3, noise_key=key)
    finite(draws, *torch.autograd.grad(draws.sum(), (mu, logvar)))

    for prior in ((), (prior_mu, prior_logvar)):
        inputs = (mu, logvar, *prior)
        kl = vae_fast.gaussian_kl(*inputs, reduction=reduction)
        on_cpu = [t.detach().double().cpu() for t in inputs]
        close(kl, vae_fast.gaussian_kl(*on_cpu, reduction=reduction), dtype)
        finite(*torch.autograd.grad(kl.sum(), inputs))
        z, kl = vae_fast.sample_and_kl(*inputs, noise_key=key, reduction=reduction)
        finite(z, kl, *torch.autograd.grad(z.sum() + 0.5 * kl.sum(), inputs))

    target = torch.rand(shape, generator=generator)
    for as_target in (
        target.to(dtype),
        (target * 255).to(torch.uint8),
        target > 0.5,
    ):
        x = on_gpu(as_target, offset)
        for from_logits in (True, False):
            # In half precision, a probability of 1 whose target is below 1 has no finite gradient.
            inside = torch.rand(shape, generator=generator).clamp(0.01, 0.99)
            scores = gaussian() if from_logits else inside.to(dtype)
            scores = on_gpu(scores, offset).requires_grad_()
            how = {"reduction": reduction, "from_logits": from_logits}
            nll = vae_fast.bernoulli_nll(scores, x, **how)
            finite(nll, *torch.autograd.grad(nll.sum(), scores))
            out = vae_fast.bce_kl_loss(scores, x, mu, logvar, beta=2.0, **how)
            close(out.loss, out.recon.double() + 2.0 * out.kl.double(), dtype)
            finite(*torch.autograd.grad(out.loss.sum(), (scores, mu, logvar)))


def check_likelihood(name: str, shape: tuple[int, ...], dtype: torch.dtype, offset: int) -> None:
    """A likelihood of the list, alone and with the KL, against the reference on the CPU."""
    spec = SPECS[name]
    params, target = spec.inputs(shape, dtype, torch.Generator().manual_seed(shape[-1]))
    mu = torch.linspace(-1, 1, 3 * shape[0]).view(shape[0], 3)
    leaves = [on_gpu(p, offset).requires_grad_() for p in params]
    x, mu_there = on_gpu(target, offset), on_gpu(mu, offset)
    nll = vae_fast.nll(spec, leaves, x, reduction="none")
    finite(*torch.autograd.grad(nll.sum(), leaves))
    out = vae_fast.elbo(spec, leaves, x, mu_there, mu_there, reduction="none")
    finite(out.loss, *torch.autograd.grad(out.loss.sum(), leaves))
    right = reference.nll(spec, [p.double() for p in params], target, "none")
    for found in (nll, out.recon):
        close(found.double().cpu() / right.abs(), right.sign(), dtype)


def check_gather(columns: int, offset: int) -> None:
    """Every mode, whole and cut 16-byte groups, against the reference on the CPU."""
    data = torch.arange(9 * columns).remainder(256).to(torch.uint8).view(9, columns)
    index, key = torch.tensor([8, 0, 3, 3]), torch.tensor([123, -4])
    on_device = (on_gpu(data, offset), index.cuda())
    for mode in ("bytes", "scale", "binarize"):
        found = vae_fast.gather_batch(*on_device, mode=mode, noise_key=key.cuda(), first_row=5)
        right = reference.gather_batch(data, index, mode, key, 5)
        assert torch.equal(found.cpu(), right), f"{mode} of {columns} columns differs"


def check_group_norm(shape: tuple[int, ...], dtype: torch.dtype, offset: int, last: bool) -> None:
    """Values against the reference on the CPU; gradients finite."""
    x = torch.linspace(-2, 3, 2 * 3 * torch.Size(shape).numel())[::6].reshape(shape).to(dtype)
    there = on_gpu(x, offset)
    if last:
        there = there.contiguous(memory_format=torch.channels_last)
    weight = on_gpu(torch.linspace(-1, 2, shape[1]).to(dtype), 0).requires_grad_()
    y = vae_fast.group_norm_silu(there.requires_grad_(), 3, weight, weight)
    right = reference.group_norm(
        x.double(), 3, weight.detach().double().cpu(), weight.detach().double().cpu(), 1e-5, True
    )
    close(y, right, dtype)
    finite(*torch.autograd.grad(y.sum(), (there, weight)))


def check_step(offset: int) -> None:
    """A training step's own ops, against plain PyTorch on the CPU."""
    ops, rows = torch.ops.vae_fast, 37
    heads, columns = torch.linspace(-1, 1, rows * 10).view(rows, 10), torch.ones(rows, 35)
    key, beta = torch.tensor([123, -4]), torch.tensor(0.5)
    flat = [torch.linspace(0.1, 1, 5003) for _ in range(5)]
    state = (torch.tensor(3.0), torch.zeros(3), torch.zeros(4, dtype=torch.float64))
    guard = [1.0, 5.0, 3.0, 50.0, 0.02]

    def run(move) -> list[torch.Tensor]:
        own, there, k, b = [move(t) for t in flat], move(heads), move(key), move(beta)
        kept = [move(t) for t in state]
        z = ops.step_sample(there, k)
        grad = ops.step_sample_backward(z, there, k, b, 1 / rows)
        found = ops.step_decide(
            own[0], [0, 4500], [move(columns)], [4600], b, there, b, *kept, rows, guard, 0.9, 0.99
        )
        ops.step_update(
            own[1], own[0], own[2], own[3], own[4], found, b, b, 0.9, 0.99, 1e-8, 0.1, True, False
        )
        return [z, grad, found, *own, *kept]

    wanted = run(torch.Tensor.clone)
    for found, right in zip(run(lambda t: on_gpu(t, offset)), wanted, strict=True):
        close(found, right, torch.float32)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("sanitize_ops.py needs a CUDA GPU, and torch sees none.")
    vae_fast.set_backend("native")
    combinations = list(itertools.product(DTYPES, SHAPES, REDUCTIONS))
    for number, (dtype, shape, reduction) in enumerate(combinations):
        check(shape, dtype, reduction, offset=number % 2)
    for number, (name, dtype) in enumerate(itertools.product(SPECS, DTYPES[:2])):
        if SPECS[name].planes == 0:
            check_likelihood(name, (3, 299), dtype, offset=number % 2)
    for number, columns in enumerate((1, 3, 16, 37, 784, 20_001)):
        check_gather(columns, offset=number % 2)
    for number, (dtype, last) in enumerate(itertools.product(DTYPES, (False, True))):
        for shape in ((1, 3, 1, 1), (2, 39, 7, 5), (2, 6, 40, 41)):
            check_group_norm(shape, dtype, number % 2, last)
    for offset in (0, 1):
        check_step(offset)
    torch.cuda.synchronize()
    print(f"{len(combinations)} combinations of dtype, shape and reduction ran")


if __name__ == "__main__":
    main()
