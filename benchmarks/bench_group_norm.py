"""GroupNorm and SiLU in one pass beside the two modules, eager and compiled, in both layouts.

Floor: memory traffic. In float32 the values take 12 bytes an element (the input twice, once for the
moments; the output once), the gradients 24 (input and upstream twice, the output once, and its lines
are read before they are written).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs
from benchmarks.check import TOLERANCE, all_close, in_float64
from benchmarks.inputs import DTYPES, normal
from benchmarks.peers import Op, compiled, ours, torch_contender

GROUPS = 32
BYTES = {"value": 3, "gradient": 5, "both": 8}  # times an element's size


def eager_norm(x, weight, bias):
    return F.silu(F.group_norm(x, GROUPS, weight, bias))


def our_norm(x, weight, bias):
    return vae_fast.group_norm_silu(x, GROUPS, weight, bias)


def _setup(op: str, layout: torch.memory_format) -> Callable[..., Case]:
    def setup(
        shape: Sequence[int], pass_: str, dtype: str, device: torch.device, modes: Sequence[str]
    ) -> Case:
        kind = DTYPES[dtype]
        call = Op(wrt=(0, 1, 2), upstream=(3,), arguments=3)

        def inputs(seed: int) -> list[torch.Tensor]:
            sizes = [shape, shape[1:2], shape[1:2], shape]
            drawn = [normal(seed, i, tuple(s), kind, device) for i, s in enumerate(sizes)]
            return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in drawn]

        def contenders() -> list[Contender | Absence]:
            return [
                ours(our_norm, call, pass_),
                torch_contender("eager", eager_norm, call, pass_),
                *compiled(eager_norm, call, pass_, device, modes),
            ]

        def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
            exact = [in_float64(t).requires_grad_() for t in inputs[:3]]
            truth = eager_norm(*exact)
            slopes = torch.autograd.grad(truth, exact, in_float64(inputs[3]))
            # Eager PyTorch rounds to half precision before it sums a channel over all positions.
            tolerance = 3 * TOLERANCE[kind]
            for found in outputs.values:
                all_close("silu(norm(x))", found, truth, tolerance)
            for i, (found, slope) in enumerate(zip(outputs.grads, slopes, strict=False)):
                all_close(f"gradient {i} of {op}", found, slope, tolerance)

        elements = math.prod(shape)
        return Case(
            op, pass_, "x".join(map(str, shape)), dtype, elements,
            elements * kind.itemsize * BYTES[pass_], device, inputs, contenders, check,
        )  # fmt: skip

    return setup


SETUPS = {
    "group_norm_silu": _setup("group_norm_silu", torch.contiguous_format),
    "group_norm_silu_last": _setup("group_norm_silu_last", torch.channels_last),
}

NAMES = (OURS, "eager", "compile")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(4),), rounds=10, warmup_rounds=2)
