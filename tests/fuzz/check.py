"""One call against float64, on one implementation; a failure is a text that can be pasted."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor

import vae_fast
from tests.conftest import LEVELS, level
from tests.fuzz.calls import GENERATORS, Call
from tests.fuzz.draw import Draw, described

# Rounding errors that a call may make, in epsilons of its result. The tests of the ops hold them to a
# few; here a wrong formula, index, layout or scale is what is looked for. Half precision is computed
# in float32 and rounded once.
EPSILONS = {torch.float32: 256, torch.float64: 256, torch.bfloat16: 4, torch.float16: 4}
WRONG = ("text", None, [1.5], torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta"))
# Bad values of arguments that are not tensors, by name.
_NOT_ONE_NUMBER = (torch.ones(2), 1j, torch.tensor(1j), torch.ones((), device="meta"))
WRONG_OF = {
    "beta": ("text", None, [1.5], 10**400, torch.ones(1).to_sparse(), *_NOT_ONE_NUMBER),
    "reduction": ("mean", None, 1, ["sum"]),
    "num_samples": (0, -1, 1.5, "2", True),
    "mode": ("float", None, 2, ["scale"]),
    "first_row": (-1, 1.5, "0", None, 2**63, torch.tensor(-1), torch.tensor(0.0), *_NOT_ONE_NUMBER),
    "dim": (7, "1", None, 1.0),
    "bounds": (1, "ab", (1.0,), (2.0, 1.0), (float("nan"), 1.0), (1.0, None), (1j, 2.0)),
    "dataset_size": (0, -1, 1e300, "10", None, float("nan"), *_NOT_ONE_NUMBER),
    "sampling": ("strata", None, 1, ["weighted"]),
    "kernel": ("gauss", None, 0, ["rbf"]),
    "bandwidths": ("text", None, (), (0.0,), (-1.0,), (float("nan"),), 1j, ("1",)),
}  # fmt: skip
MAY_BE_NONE = ("bias", "noise_key", ("mixture_log_density", "logits"))
# An argument may be passed on under another name, which the error then has.
ALSO_KNOWN_AS = {"x": ("target",), "x_hat": ("logits", "probs"), "logits": ("probs",)}


class Failure(AssertionError):
    """A call that went wrong, and how."""


def check(name: str, seed: int) -> None:
    """Draw the call ``name`` number ``seed`` and make it; raises Failure where it is wrong."""
    draw = Draw(f"{name} {seed}")
    implementation = draw.one_of(("reference", *LEVELS))
    call = GENERATORS[name](draw)
    wrong = _spoilt(draw, name, call) if draw.chance(0.1) else None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(draw.one_of((1, 2)))
        with on(implementation):
            if wrong is None:
                compare(call, draw)
            else:
                refuse(call, wrong)
    except Exception as error:
        said = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        arguments = {**call.arguments, **(dict([wrong]) if wrong else {})}
        lines = [f"    {key}={described(value)}," for key, value in arguments.items()]
        raise Failure(
            f"{said}\n{name} on {implementation}; again: python -m tests.fuzz {name} {seed}\n"
            f"vae_fast.{name}(\n" + "\n".join(lines) + "\n)"
        ) from error
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def on(implementation: str):
    if implementation == "reference":
        with vae_fast.set_backend("reference"):
            yield
    else:
        with vae_fast.set_backend("native"), level(implementation):
            yield


# --- right calls ---------------------------------------------------------------------------------


def compare(call: Call, draw: Draw) -> None:
    before = {k: v.clone() for k, v in call.arguments.items() if isinstance(v, Tensor)}
    ours = {k: _leaf(v, k in call.leaves, wide=False) for k, v in call.arguments.items()}
    exact = {k: _leaf(v, k in call.leaves, wide=True) for k, v in call.arguments.items()}
    outputs, truths = _tuple(call.function(**ours)), call.truth(**exact)
    if len(outputs) != len(truths):
        raise Failure(f"{len(outputs)} outputs, where there should be {len(truths)}")
    terms = max([1, *(v.numel() for v in call.arguments.values() if isinstance(v, Tensor))])
    for i, (found, truth) in enumerate(zip(outputs, truths, strict=True)):
        unit = terms / max(1, truth.numel())
        _near(f"output {i}", found, truth, call, unit)
        _check_dtype(f"output {i}", found, call, i not in call.same)
    _gradients(call, draw, ours, exact, outputs, truths, terms)
    for name, value in before.items():
        if not _same(value, call.arguments[name]):
            raise Failure(f"{name} was written to")


def _gradients(call, draw, ours, exact, outputs, truths, terms) -> None:
    used = [i for i, out in enumerate(outputs) if out.requires_grad and truths[i].requires_grad]
    if not used:
        return
    ups = [draw.floats(truths[i].shape, torch.float64, 1.0).nan_to_num(1.0) for i in used]
    ups = [up.to(outputs[i].dtype) for i, up in zip(used, ups, strict=True)]
    found = torch.autograd.grad(
        [outputs[i] for i in used], [ours[n] for n in call.leaves], ups, allow_unused=True
    )
    wide = [up.double() for up in ups]
    right = torch.autograd.grad(
        [truths[i] for i in used], [exact[n] for n in call.leaves], wide, allow_unused=True
    )
    above = max([1.0, *(float(up.abs().max()) for up in wide if up.numel())])
    for name, got, truth in zip(call.leaves, found, right, strict=True):
        if (got is None) != (truth is None):
            raise Failure(f"the gradient of {name} is {'missing' if got is None else 'not none'}")
        if got is not None:
            mixed = float(truth.nan_to_num(0, 0, 0).abs().max()) if truth.numel() else 0.0
            unit = above * max(1.0, mixed if call.mixes else terms / max(1, truth.numel()))
            _near(f"the gradient of {name}", got, truth, call, unit)
            if got.dtype != call.arguments[name].dtype:
                raise Failure(f"the gradient of {name} is {got.dtype}")


def _leaf(value: Any, differentiated: bool, wide: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if wide and value.dtype.is_floating_point:
        value = value.double()
    value = value.detach()
    return value.requires_grad_() if differentiated else value


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(7) if one.is_floating_point() else one,
                       other.nan_to_num(7) if other.is_floating_point() else other)  # fmt: skip


def _check_dtype(what: str, found: Tensor, call: Call, is_sum: bool) -> None:
    """A sum is float32 or better, everything else has the inputs' dtype."""
    if not call.leaves:
        return
    dtype = call.arguments[call.leaves[0]].dtype
    if is_sum and dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32
    if found.dtype != dtype and not (is_sum and found.dtype == torch.float64):
        raise Failure(f"{what} is {found.dtype}, and should be {dtype}")


def format_of(t: Tensor) -> torch.dtype:
    return t.dtype if t.dtype.is_floating_point else torch.float32


def _near(what: str, found: Tensor, truth: Tensor, call: Call, unit: float) -> None:
    found, truth = found.detach(), truth.detach()
    if found.shape != truth.shape:
        raise Failure(
            f"{what} has shape {tuple(found.shape)}, and should have {tuple(truth.shape)}"
        )
    if not truth.numel():
        return
    format = torch.finfo(format_of(found))
    got = found.double()
    largest = float(truth.nan_to_num(0, 0, 0).abs().max())
    limit = EPSILONS[format_of(found)] * format.eps * (truth.abs() + unit) + call.coarse * largest
    off = (got - truth).abs()
    right = (off <= limit) | (got.isnan() & truth.isnan()) | (got == truth)
    right |= (truth.abs() > 0.99 * format.max) & ~(got.abs() < 0.99 * format.max)
    right |= (call.coarse > 0) & (truth.abs() * (1 + call.coarse) > format.max) & got.isinf()
    if not bool(right.all()):
        place = tuple((~right).nonzero()[0].tolist())
        raise Failure(
            f"{what} is {got[place].item():.9g} at {place} and should be {truth[place].item():.9g}"
        )


# --- wrong calls ---------------------------------------------------------------------------------


def _spoilt(draw: Draw, name: str, call: Call) -> tuple[str, Any] | None:
    """One argument and a bad value for it."""
    if not inspect.isfunction(getattr(vae_fast, name, None)):
        return None
    names = [k for k, v in call.arguments.items() if isinstance(v, Tensor) or k in WRONG_OF]
    if not names:
        return None
    argument = draw.one_of(names)
    if argument in WRONG_OF:
        return argument, draw.one_of(WRONG_OF[argument])
    optional = argument in MAY_BE_NONE or (name, argument) in MAY_BE_NONE
    values = [v for v in WRONG if v is not None or not optional]
    if name == "split_moments":  # it takes a single tensor, which may be on any device
        values = values[:-1]
    return argument, draw.one_of(values)


def refuse(call: Call, wrong: tuple[str, Any]) -> None:
    """A ValueError or TypeError that names the argument."""
    argument, value = wrong
    try:
        call.function(**{**call.arguments, argument: value})
    except (ValueError, TypeError) as error:
        if not any(n in str(error) for n in (argument, *ALSO_KNOWN_AS.get(argument, ()))):
            raise Failure(
                f"{argument} is wrong, but the error does not name it: {error}"
            ) from error
        return
    raise Failure(f"{argument} is wrong, but there was no error")


def seeds(seed: int, calls: int):
    """(name, seed) of ``calls`` calls, in turns."""
    names = sorted(GENERATORS)
    for i in range(calls):
        yield names[i % len(names)], seed * 1_000_003 + i // len(names)


def run(seed: int, calls: int) -> list[Failure]:
    found = []
    for name, number in seeds(seed, calls):
        try:
            check(name, number)
        except Failure as failure:
            found.append(failure)
    return found
