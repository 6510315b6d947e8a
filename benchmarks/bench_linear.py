"""linear_bernoulli_nll, last layer and loss in one op, compared with the two separately."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

import vae_fast
from benchmarks import bench_bernoulli as bernoulli
from benchmarks.case import OURS, Absence, Case, Contender, Outputs, WrongResult
from benchmarks.check import TOLERANCE, all_close, close, in_float64
from benchmarks.inputs import DTYPES, normal, pixels
from benchmarks.peers import Op, compiled, jax_contender, ours, torch_contender

# --- the peers' spellings ------------------------------------------------------------------------


def eager(hidden, weight, bias, target):
    return bernoulli.eager(F.linear(hidden, weight, bias), target)


def eager_logits(hidden, weight, bias, target):
    return bernoulli.eager_logits(F.linear(hidden, weight, bias), target)


def jax_logits(hidden, weight, bias, target):
    return bernoulli.jax_logits(hidden @ weight.T + bias, target)


# --- set-up --------------------------------------------------------------------------------------


def setup_linear_bernoulli_nll(
    shape: Sequence[int],
    pass_: str,
    dtype: str,
    device: torch.device,
    modes: Sequence[str],
    target: str = "",
) -> Case:
    """``shape``: samples, hidden features, pixels."""
    samples, features, count = shape
    kind, target_kind = DTYPES[dtype], DTYPES[target or dtype]

    def inputs(seed: int) -> list[torch.Tensor]:
        # As after a ReLU, and with weights as torch.nn.Linear starts with: logits of about one.
        return [
            normal(seed, 0, (samples, features), kind, device).clamp_min_(0),
            normal(seed, 1, (count, features), kind, device, scale=features**-0.5),
            normal(seed, 2, (count,), kind, device, scale=features**-0.5),
            pixels(seed, 3, (samples, count), target_kind, device),
        ]

    call = Op(wrt=(0, 1, 2))

    def contenders() -> list[Contender | Absence]:
        return [
            ours(vae_fast.linear_bernoulli_nll, call, pass_),
            torch_contender("eager", eager, call, pass_),
            torch_contender("eager-logits", eager_logits, call, pass_),
            *compiled(eager_logits, call, pass_, device, modes),
            jax_contender(jax_logits, call, pass_, device),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        hidden, weight, bias, x = (in_float64(t) for t in inputs)
        value, (slope,) = bernoulli.terms(F.linear(hidden, weight, bias), x)
        if outputs.values:
            close("the loss", outputs.values[0].item(), value.sum().item(), TOLERANCE[kind])
        if not outputs.grads:
            return
        if len(outputs.grads) != 3:
            raise WrongResult(f"{len(outputs.grads)} gradients, where 3 are wanted")
        truth = {"hidden": slope @ weight, "weight": slope.T @ hidden, "bias": slope.sum(0)}
        for (name, right), found in zip(truth.items(), outputs.grads, strict=True):
            all_close(f"the gradient of {name}", found, right, TOLERANCE[kind])

    # Arithmetic is what limits it, three products of 2 B H D operations: no bytes are counted.
    return Case(
        "linear_bernoulli_nll", pass_, f"{samples}x{features}x{count}", dtype, samples * count, 0,
        device, inputs, contenders, check, target=target,
    )  # fmt: skip


SETUPS = {"linear_bernoulli_nll": setup_linear_bernoulli_nll}

NAMES = (OURS, "eager", "eager-logits", "compile", "jax")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(8),), rounds=10, warmup_rounds=2)
