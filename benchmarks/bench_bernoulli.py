"""bernoulli_nll beside eager (two spellings), torch.compile and JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

import vae_fast
from benchmarks.case import OURS, Absence, Case, Contender, Outputs
from benchmarks.check import check_sum, grads_or_nothing
from benchmarks.inputs import DTYPES, normal, pixels
from benchmarks.peers import Op, compiled, jax_contender, ours, torch_contender

# --- the peers' spellings ------------------------------------------------------------------------


def as_float(target, like):
    return target.to(like.dtype) / 255 if target.dtype == torch.uint8 else target


def eager(logits, target):
    """The tutorial's: the decoder ends in a sigmoid, the loss takes probabilities."""
    x_hat = torch.sigmoid(logits)
    return F.binary_cross_entropy(x_hat, as_float(target, logits), reduction="sum")


def eager_logits(logits, target):
    return F.binary_cross_entropy_with_logits(logits, as_float(target, logits), reduction="sum")


def jax_logits(logits, target):
    import jax
    import jax.numpy as jnp

    target = target.astype(logits.dtype) / 255 if target.dtype == jnp.uint8 else target
    terms = jax.nn.softplus(logits) - logits * target
    # A sum of bfloat16 is bfloat16 in JAX, too coarse for a loss: this is how one is written there.
    return jnp.sum(terms.astype(jnp.float32))


# --- set-up --------------------------------------------------------------------------------------


def terms(logits, target):
    """In float64: the loss of each element and its gradient."""
    value = torch.clamp_min(logits, 0) - logits * target + torch.log1p(torch.exp(-logits.abs()))
    return value, (torch.sigmoid(logits) - target,)


def setup_bernoulli_nll(
    shape: Sequence[int],
    pass_: str,
    dtype: str,
    device: torch.device,
    modes: Sequence[str],
    target: str = "",
) -> Case:
    shape, kind = tuple(shape), DTYPES[dtype]
    target_kind = DTYPES[target or dtype]
    elements = math.prod(shape)
    # The least traffic, in bytes per element, s for logits and t for the target: value reads both,
    # s + t; the gradient reads both and writes s, 2 s + t; and value and gradient take no more than
    # the gradient, for they can be made in one pass. float32: 8, 12, 12; bfloat16, uint8: 3, 5, 5.
    s, t = kind.itemsize, target_kind.itemsize
    per_element = s + t if pass_ == "value" else 2 * s + t

    def inputs(seed: int) -> list[torch.Tensor]:
        return [
            normal(seed, 0, shape, kind, device),
            pixels(seed, 1, shape, target_kind, device),
        ]

    call = Op(wrt=(0,))

    def contenders() -> list[Contender | Absence]:
        mine = ours(vae_fast.bernoulli_nll, call, pass_)
        if pass_ == "gradient" and device.type == "cpu":
            # On the CPU the public function computes the gradient in its forward pass, and its
            # backward would take no time. This op computes it from the inputs.
            mine = native_backward()
        return [
            mine,
            *buffer_kept(shape, kind, pass_, device),
            torch_contender("eager", eager, call, pass_),
            torch_contender("eager-logits", eager_logits, call, pass_),
            *compiled(eager_logits, call, pass_, device, modes),
            jax_contender(jax_logits, call, pass_, device),
            *yardstick(elements, pass_, dtype, device),
        ]

    def check(inputs: Sequence[torch.Tensor], outputs: Outputs) -> None:
        value = outputs.values[0] if outputs.values else None
        check_sum("the loss", inputs, value, grads_or_nothing(outputs, 1), terms)

    return Case(
        "bernoulli_nll", pass_, "x".join(map(str, shape)), dtype, elements, per_element * elements,
        device, inputs, contenders, check, target=target,
    )  # fmt: skip


def native_backward() -> Contender | Absence:
    if vae_fast.backend.native_reason("cpu") is not None:
        return Absence(OURS, vae_fast.backend.native_reason("cpu"))
    backward, one = torch.ops.vae_fast.bernoulli_nll_backward, torch.ones(())
    by_sum = vae_fast.types.REDUCTIONS.index("sum")
    return Contender(
        OURS,
        lambda tensors: backward(one, tensors[:1], tensors[1], by_sum, 1),
        outputs=lambda grads: Outputs((), tuple(grads)),
    )


BUFFER_KEPT = OURS + " (buffer kept)"


def buffer_kept(
    shape: Sequence[int], kind: torch.dtype, pass_: str, device: torch.device
) -> list[Contender | Absence]:
    """Value and gradient in one pass, into a buffer of the caller, without autograd, as an engine
    calls it. The public function returns a new gradient each time, with new memory pages."""
    if pass_ != "both":
        return []
    if (reason := vae_fast.backend.native_reason(device.type)) is not None:
        return [Absence(BUFFER_KEPT, reason)]
    into = torch.ops.vae_fast.bernoulli_nll_with_grad_out.default
    by_sum = vae_fast.types.REDUCTIONS.index("sum")
    grad = torch.zeros(shape, dtype=kind, device=device)
    return [
        Contender(
            BUFFER_KEPT,
            lambda tensors: into(tensors[:1], tensors[1], by_sum, 1.0, [grad]),
            outputs=lambda nll: Outputs((nll,), (grad,)),
        )
    ]


def yardstick(elements: int, pass_: str, dtype: str, device: torch.device) -> list[Contender]:
    """``torch.add(a, b, out=c)``, which reads and writes as much as value and gradient in one pass:
    12 bytes an element in float32. For cases large enough for memory to be what limits them."""
    if pass_ != "both" or elements < 1 << 20 or dtype != "float32":
        return []
    a, b, c = (torch.zeros(elements, device=device) for _ in range(3))
    return [
        Contender(
            "add(out=)", lambda _: torch.add(a, b, out=c), own=lambda _: None, bytes=12 * elements
        )
    ]


SETUPS = {"bernoulli_nll": setup_bernoulli_nll}

NAMES = (OURS, "eager", "eager-logits", "compile", "jax")


def test_speed(checked, benchmark):
    benchmark.pedantic(checked.read, args=(checked.limit(8),), rounds=10, warmup_rounds=2)
