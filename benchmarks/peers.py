"""From an op's spelling in PyTorch or JAX to contenders: eager, compiled, jitted, ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.case import OURS, Absence, Contender, Outputs

COMPILE_MODES = {"compile": None, "compile-max-autotune": "max-autotune-no-cudagraphs"}
CUDA_GRAPHS = {"compile-cudagraphs": "max-autotune"}


@dataclass
class Op:
    """How an op is called: what is differentiated, and by which upstream gradients.

    ``wrt``: the inputs that are differentiated. ``upstream``: for each output of the op, which input
    is its upstream gradient, or None for a scalar loss, whose gradient is 1.
    """

    wrt: tuple[int, ...]
    upstream: tuple[int | None, ...] = (None,)
    arguments: int | None = None  # how many of the inputs the op takes; None for all


def as_tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def torch_contender(
    name: str, fn: Callable[..., Any], op: Op, pass_: str, before: Callable[[], None] | None = None
) -> Contender:
    """``fn(*inputs)`` and, as ``pass_`` asks, ``torch.autograd.grad`` of its outputs.

    Args:
        before: called before each forward pass, on the clock.
    """

    def own(inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        if pass_ != "value":
            inputs = [
                t.detach().requires_grad_() if i in op.wrt else t for i, t in enumerate(inputs)
            ]
        # Autograd is handed lists that exist already: making them is not the op's work.
        leaves = [inputs[i] for i in op.wrt]
        upstream = [None if i is None else inputs[i] for i in op.upstream]
        return tuple(inputs[: op.arguments]), leaves, upstream

    def forward(state: tuple[Any, ...]) -> tuple[Any, ...]:
        if before is not None:
            before()
        return fn(*state[0])

    def prepare(state: tuple[Any, ...]) -> tuple[Any, ...]:
        return as_tuple(forward(state)), state[1], state[2]

    def backward(state: tuple[Any, ...]) -> tuple[Any, ...]:
        return state[0], torch.autograd.grad(*state)

    def both(state: tuple[Any, ...]) -> tuple[Any, ...]:
        values = forward(state)
        if not isinstance(values, tuple):
            values = (values,)
        return values, torch.autograd.grad(values, state[1], state[2])

    if pass_ == "value":
        return Contender(name, forward, own, outputs=lambda out: Outputs(as_tuple(out), ()))
    return Contender(
        name,
        both if pass_ == "both" else backward,
        own,
        prepare=None if pass_ == "both" else prepare,
        outputs=lambda out: Outputs(as_tuple(out[0]), as_tuple(out[1])),
        # A step that is announced as new overwrites the memory of the step before.
        most_prepared=1 if before is not None else Contender.most_prepared,
    )


def compiled(
    fn: Callable[..., Any], op: Op, pass_: str, device: torch.device, modes: Sequence[str]
) -> list[Contender]:
    """``torch.compile`` of ``fn`` in the modes asked for (and, on a GPU, under CUDA graphs)."""
    known = {**COMPILE_MODES, **(CUDA_GRAPHS if device.type == "cuda" else {})}
    contenders = []
    for name in modes:
        if name not in known:
            continue
        # A graph's outputs are in its own memory, so each step has to be announced.
        before = torch.compiler.cudagraph_mark_step_begin if name in CUDA_GRAPHS else None
        call = torch.compile(fn, mode=known[name], dynamic=False, fullgraph=True)
        contenders.append(torch_contender(name, call, op, pass_, before))
    return contenders


def jax_contender(
    fn: Callable[..., Any], op: Op, pass_: str, device: torch.device, key: bool = False
) -> Contender | Absence:
    """``jax.jit`` of ``fn(jnp, *inputs)``, or of its VJP; with ``key``, ``fn(key, *inputs)``."""
    if importlib.util.find_spec("jax") is None:
        return Absence("jax", "jax is not installed: pip install jax")
    import jax
    import jax.numpy as jnp

    if device.type == "cuda" and jax.default_backend() != "gpu":
        return Absence("jax", "this jax has no GPU support")

    def to_jax(t: torch.Tensor) -> Any:
        if t.dtype == torch.bfloat16:
            return jnp.asarray(t.float().cpu().numpy()).astype(jnp.bfloat16)
        return jnp.asarray(t.cpu().numpy())

    def to_torch(a: Any) -> torch.Tensor:
        array = torch.from_numpy(jax.device_get(a.astype(jnp.float32)).copy())
        return array.to(torch.bfloat16) if a.dtype == jnp.bfloat16 else array

    seeds = iter(range(1, 1 << 30))

    def own(inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        arrays = tuple(to_jax(t) for t in inputs)
        return (jax.random.key(next(seeds)) if key else None, *arrays)

    def values(random: Any, *arrays: Any) -> tuple[Any, ...]:
        arrays = arrays[: op.arguments]
        return as_tuple(fn(random, *arrays) if key else fn(*arrays))

    def both(random: Any, *arrays: Any) -> tuple[Any, ...]:
        def of_leaves(*leaves: Any) -> tuple[Any, ...]:
            merged = list(arrays)
            for i, leaf in zip(op.wrt, leaves, strict=True):
                merged[i] = leaf
            return values(random, *merged)

        out, vjp = jax.vjp(of_leaves, *(arrays[i] for i in op.wrt))
        above = tuple(
            jnp.ones_like(o) if i is None else arrays[i]
            for i, o in zip(op.upstream, out, strict=True)
        )
        return out, vjp(above)

    def gradient(random: Any, *arrays: Any) -> tuple[Any, ...]:
        return (), both(random, *arrays)[1]  # XLA drops what only the value needs

    call = jax.jit({"value": values, "gradient": gradient, "both": both}[pass_])

    def outputs(out: Any) -> Outputs:
        out = (out, ()) if pass_ == "value" else out
        return Outputs(*(tuple(to_torch(a) for a in part) for part in out))

    def peak_bytes(state: tuple[Any, ...]) -> int | None:
        memory = call.lower(*state).compile().memory_analysis()
        if memory is None:
            return None
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    return Contender(
        "jax", lambda s: jax.block_until_ready(call(*s)), own, None, outputs, peak_bytes
    )


def ours(fn: Callable[..., Any], op: Op, pass_: str) -> Contender:
    """Our public function, in the plain way its users call it."""
    return torch_contender(OURS, fn, op, pass_)
