"""Every likelihood's -log p compared with the usual formula in eager PyTorch and torch.compile.

Floors on a CPU, float32, value and all gradients: 4 bytes read for each parameter and for the target,
and 4 written for each gradient, so 20 bytes an element for a Gaussian with a scale for each element;
results/instructions.json has the instructions an element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.check import TOLERANCE, all_close, close, in_float64
from benchmarks.inputs import DTYPES
from benchmarks.peers import Op, compiled, ours, torch_contender
from vae_fast.likelihoods import SPECS, Spec

BUFFER_KEPT = OURS + " (buffer kept)"

# --- the formulas that people use ----------------------------------------------------------------


def gaussian(loc: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return 0.5 * ((x - loc) * torch.exp(-log_scale)) ** 2 + log_scale + 0.5 * math.log(2 * math.pi)


def laplace(loc: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return (x - loc).abs() * torch.exp(-log_scale) + log_scale + math.log(2)


def negative_binomial(mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """As scvi-tools has it."""
    eps = 1e-8
    log_sum = torch.log(theta + mu + eps)
    return -(
        theta * (torch.log(theta + eps) - log_sum)
        + x * (torch.log(mu + eps) - log_sum)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def zero_inflated(mu: Tensor, theta: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    """As scvi-tools has it."""
    eps = 1e-8
    softplus = F.softplus(-logits)
    log_theta, log_sum = torch.log(theta + eps), torch.log(theta + mu + eps)
    both = -logits + theta * (log_theta - log_sum)
    zero = F.softplus(both) - softplus
    more = (
        -softplus
        + both
        + x * (torch.log(mu + eps) - log_sum)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return -((x < eps).to(mu.dtype) * zero + (x > eps).to(mu.dtype) * more)


def logistic_mixture(planes: Tensor, x: Tensor) -> Tensor:
    """As the very deep VAE has it, with its tensors of (B, H, W, 3, K)."""
    planes, x = planes.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).to(planes.dtype) / 127.5 - 1
    k = planes.shape[-1] // 10
    logits = planes[..., :k]
    rest = planes[..., k:].unflatten(-1, (3, 3 * k))
    means, scales = rest[..., :k], rest[..., k : 2 * k].clamp_min(-7.0)
    coefficients = torch.tanh(rest[..., 2 * k :])
    x = x.unsqueeze(-1) + torch.zeros_like(means)
    second = means[..., 1:2, :] + coefficients[..., 0:1, :] * x[..., 0:1, :]
    third = (
        means[..., 2:3, :]
        + coefficients[..., 1:2, :] * x[..., 0:1, :]
        + coefficients[..., 2:3, :] * x[..., 1:2, :]
    )
    means = torch.cat([means[..., 0:1, :], second, third], -2)
    centered, inverse = x - means, torch.exp(-scales)
    plus, minus = inverse * (centered + 1 / 255), inverse * (centered - 1 / 255)
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    middle = inverse * centered
    density = middle - scales - 2 * F.softplus(middle)
    log_probs = torch.where(
        x < -0.999,
        plus - F.softplus(plus),
        torch.where(
            x > 0.999,
            -F.softplus(minus),
            torch.where(delta > 1e-5, torch.log(delta.clamp_min(1e-12)), density - math.log(127.5)),
        ),
    )
    return -torch.logsumexp(log_probs.sum(-2) + torch.log_softmax(logits, -1), -1)


# torch.distributions.ContinuousBernoulli is no peer: in float32 its gradient is off by 7% near logits
# of 0. What has no entry is the Spec's own formula in plain PyTorch.
USUAL: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "laplace": laplace,
    "negative_binomial": negative_binomial,
    "zero_inflated_negative_binomial": zero_inflated,
    "discretized_logistic_mixture": logistic_mixture,
}
# Parameters that all samples share, as people have them: a gene's dispersion.
SHARED = {"negative_binomial": 1, "zero_inflated_negative_binomial": 1}
COMPONENTS = 10  # of the mixture; (N, 100, H, W)

# --- set-up --------------------------------------------------------------------------------------


def _inputs(spec: Spec, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Parameters and target of moderate size, for which the usual formulas are accurate too."""
    generator = torch.Generator().manual_seed(1000 * seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    if spec.name == "discretized_logistic_mixture":
        planes = normal(shape[0], 10 * COMPONENTS, *shape[2:]).clamp_(-2, 2)
        return [planes.to(dtype), torch.randint(0, 256, tuple(shape), generator=generator)]
    if spec.target == "count":
        uniform = torch.rand(tuple(shape), generator=generator)
        zero = torch.rand(tuple(shape), generator=generator) < 0.82  # 85% with those drawn as 0
        target = torch.poisson(8 * uniform, generator=generator).masked_fill_(zero, 0)
        params = [torch.rand(tuple(shape), generator=generator) * 2 + 0.01]
        if "dispersion" in spec.params:
            params.append(torch.rand(shape[-1], generator=generator) * 3 + 0.1)
        params += [normal(*shape) for _ in spec.params[len(params) :]]
        return [*(p.to(dtype) for p in params), target.to(dtype)]
    params, target = spec.inputs(shape, dtype, generator)
    if spec.name in ("gaussian", "laplace"):
        params = [normal(*shape).to(dtype) for _ in params]
    if spec.name == "continuous_bernoulli":
        params = [(3 * normal(*shape)).to(dtype)]
    return [*params, target]


def _setup(spec: Spec) -> Callable[..., Case]:
    op = f"{spec.name}_nll"
    usual = USUAL.get(spec.name, spec.terms)

    def mine(*tensors: Tensor) -> Tensor:
        return vae_fast.nll(spec, tensors[:-1], tensors[-1])

    def peer(*tensors: Tensor) -> Tensor:
        return usual(*tensors).sum()

    def setup(
        shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
    ) -> Case:
        kind = DTYPES[dtype]
        first = _inputs(spec, shape, kind, 0)
        call = Op(wrt=tuple(range(len(first) - 1)))

        def inputs(seed: int) -> list[Tensor]:
            return [t.to(device) for t in _inputs(spec, shape, kind, seed)]

        def contenders() -> list[Contender | Absence]:
            return [
                ours(mine, call, pass_),
                *_buffer_kept(spec, first, pass_, device),
                torch_contender("eager", peer, call, pass_),
                *compiled(peer, call, pass_, device, modes),
                *_yardstick(math.prod(shape), spec, pass_, dtype, device),
            ]

        def check(inputs: Sequence[Tensor], outputs: Outputs) -> None:
            exact = [in_float64(t) if t.is_floating_point() else t for t in inputs]
            leaves = [t.requires_grad_() for t in exact[:-1]]
            truth = spec.terms(*leaves, exact[-1].double()).sum()
            slopes = torch.autograd.grad(truth, leaves)
            if outputs.values:
                close(op, outputs.values[0].item(), truth.item(), TOLERANCE[kind])
            if outputs.grads and len(outputs.grads) != len(leaves):
                raise WrongResult(f"{len(outputs.grads)} gradients for {len(leaves)} parameters")
            for i, (found, slope) in enumerate(zip(outputs.grads, slopes, strict=False)):
                all_close(f"gradient {i} of {op}", found, slope, 10 * TOLERANCE[kind])

        elements = math.prod(shape)
        moved = sum(t.nbytes for t in first)
        if pass_ != "value":
            moved += sum(t.nbytes for t in first[:-1])
        return Case(
            op, pass_, "x".join(map(str, shape)), dtype, elements, moved, device, inputs,
            contenders, check,
        )  # fmt: skip

    return setup


def _buffer_kept(
    spec: Spec, tensors: Sequence[Tensor], pass_: str, device: torch.device
) -> list[Contender | Absence]:
    """Value and gradients in one pass, into buffers that the caller owns, without autograd."""
    if pass_ != "both" or spec.name in SHARED or spec.planes:
        return []
    if (reason := vae_fast.backend.native_reason(device.type)) is not None:
        return [Absence(BUFFER_KEPT, reason)]
    into = getattr(torch.ops.vae_fast, f"{spec.name}_nll_with_grad_out").default
    by_sum = vae_fast.types.REDUCTIONS.index("sum")
    grads = [torch.zeros_like(t, device=device) for t in tensors[:-1]]
    return [
        Contender(
            BUFFER_KEPT,
            lambda inputs: into(inputs[:-1], inputs[-1], by_sum, 1.0, grads),
            outputs=lambda nll: Outputs((nll,), tuple(grads)),
        )
    ]


def _yardstick(
    elements: int, spec: Spec, pass_: str, dtype: str, device: torch.device
) -> list[Contender]:
    """``torch.add(a, b, out=c)``: 12 bytes an element, at the speed of memory."""
    if pass_ != "both" or spec.name not in ("gaussian", "laplace") or dtype != "float32":
        return []
    a, b, c = (torch.zeros(elements, device=device) for _ in range(3))
    return [
        Contender(
            "add(out=)", lambda _: torch.add(a, b, out=c), own=lambda _: None, bytes=12 * elements
        )
    ]


# The Bernoulli's rows are bench_bernoulli.py's.
SETUPS = {f"{spec.name}_nll": _setup(spec) for spec in SPECS.values() if spec.name != "bernoulli"}

NAMES = (OURS, "eager", "compile")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(8),), rounds=10, warmup_rounds=2)
