"""A case is one op, pass, shape and dtype; contenders are ways to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

# value: the result, no gradient wanted. gradient: the backward pass alone. both: what training does.
PASSES = ("value", "gradient", "both")

OURS = "ours"


class WrongResult(AssertionError):
    """A contender's result differs from float64: it is reported, and not timed."""


class Absent(RuntimeError):
    """A contender or an op is not available; the message says what is missing."""


class Outputs(NamedTuple):
    """What a contender computed: values and gradients, in the order of the case's op."""

    values: tuple[torch.Tensor, ...]
    grads: tuple[torch.Tensor, ...]


def itself(x: Any) -> Any:
    return x


@dataclass
class Contender:
    """One way to compute a case.

    ``own`` turns a set of inputs into the contender's own form, once per set. ``prepare`` makes the
    state of one call from it, off the clock (the backward pass needs a graph). ``run`` is on the
    clock. ``outputs`` reads its result for the check; None is a yardstick, which is not checked.
    """

    name: str
    run: Callable[[Any], Any]
    own: Callable[[Sequence[torch.Tensor]], Any] = itself
    prepare: Callable[[Any], Any] | None = None
    outputs: Callable[[Any], Outputs] | None = None
    # Peak bytes of one call, for contenders whose memory torch's profiler can't see.
    peak_bytes: Callable[[Any], int | None] | None = None
    bytes: int | None = None  # bytes that it moves, if not the case's
    most_prepared: int = 64  # a limit: each prepared state holds a graph


@dataclass
class Case:
    """One row of the table.

    ``inputs(seed)`` makes a set of input tensors; ``check(inputs, outputs)`` compares with float64
    and raises WrongResult. ``contenders()`` makes them when they are wanted: compiling is slow.
    """

    op: str
    pass_: str
    shape: str
    dtype: str
    elements: int
    bytes: int
    device: torch.device
    inputs: Callable[[int], Sequence[torch.Tensor]]
    contenders: Callable[[], list[Contender | Absence]]
    check: Callable[[Sequence[torch.Tensor], Outputs], None]
    target: str = ""
    note: str = ""
    samples: int | None = None  # of a step or an epoch: the table then has samples per second
    sets: int | None = None  # a fixed number of input sets, instead of rotating past the cache
    memory: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        parts = [self.op, self.pass_, self.shape, self.dtype, self.target]
        return "/".join(part for part in parts if part)


class Absence(NamedTuple):
    """A peer that is not installed, and what is missing."""

    name: str
    why: str
