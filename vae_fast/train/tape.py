"""Record the ops of a piece of work on the CPU, and play them again without the model's Python.

This is the CPU's counterpart of a CUDA graph: a small model's step spends as long in Python and
autograd as in some of its products. A tape holds the calls that reached the kernels, in forward and
backward. It plays them on the same parameters and buffers, with the same numbers, in the same
order, so the bits are the same. Intermediate tensors are allocated at each playing and freed after
their last use. Random ops draw from torch's generator as before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_as_strided = _aten.as_strided.default
_ALIASES = {_aten.detach.default, _aten.alias.default}
# Ops whose result does not depend on their inputs' values.
_MAKERS = {
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default,
    _aten.ones.default, _aten.zeros.default, _aten.full.default, _aten.scalar_tensor.default,
}  # fmt: skip
# Ops that write to arguments although their schema does not say so.
_WRITERS = {_aten.native_batch_norm.default, _aten.batch_norm_update_stats.default}
_RESIZERS = {_aten.resize_.default, _aten.resize_as_.default, _aten.set_.source_Tensor}

# torch's own functions for these ops: calling them costs less than calling an op by its schema.
_SHORTER: dict[Callable[..., Any], Callable[..., Any]] = {
    _aten.view.default: Tensor.view, _aten.t.default: torch.t, _aten.copy_.default: Tensor.copy_,
    _aten.mm.default: torch.mm, _aten.mm.out: torch.mm, _aten.addmm.default: torch.addmm,
    _aten.add.Tensor: torch.add, _aten.mul.Tensor: torch.mul, _aten.div.Tensor: torch.div,
    _aten.add_.Tensor: Tensor.add_, _aten.mul_.Tensor: Tensor.mul_, _aten.cat.default: torch.cat,
    _aten.sum.dim_IntList: torch.sum, _aten.sum.IntList_out: torch.sum,
    _aten.relu.default: torch.relu, _aten.relu_.default: torch.relu_,
    _aten.clone.default: torch.clone,
}  # fmt: skip

Geometry = tuple[Any, ...]


@dataclass
class _Call:
    """One op. ``results``: the names of the tensors that it makes, None for one that is not new.
    ``parts``: None if it returns one tensor; for a tuple, the number of tensors of each list in it,
    and None for each tensor. ``acts``: it writes to memory or draws random numbers, so it must be
    played."""

    op: Callable[..., Any]
    arguments: list[str]
    reads: list[str]
    results: list[str | None]
    parts: list[int | None] | None
    acts: bool

    @property
    def target(self) -> str:
        """The left side of the Python assignment of the op's result."""
        names = iter([name or "_" for name in self.results])
        if self.parts is None:
            return next(names)
        found = []
        for length in self.parts:
            inner = ", ".join(itertools.islice(names, 1 if length is None else length))
            found.append(inner if length is None else f"[{inner}]")
        return ", ".join(found) + ","


@dataclass
class Tape:
    """``play(*inputs)`` repeats the recorded ops and returns what the work returned.

    Attributes:
        constants: the ops' arguments that no recorded op made, by name.
    """

    calls: list[_Call] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    play: Callable[..., tuple[Tensor, ...]] = lambda *_: ()

    def finish(self) -> None:
        """Leave out ops whose results are not used, and compile ``play``."""
        needed, kept = set(self.outputs), []
        for call in reversed(self.calls):
            if call.acts or not needed.isdisjoint(call.results):
                kept.append(call)
                needed.update(call.reads)
        self.calls = kept[::-1]
        self.play = _compiled(self)

    def external(self) -> list[Tensor]:
        """The memory, other than inputs, that playing reads and writes."""
        return _tensors(list(self.constants.values()))

    def has_same_calls(self, other: Tape) -> bool:
        """Whether two recordings of the same work have the same calls."""
        if len(self.calls) != len(other.calls) or self.outputs != other.outputs:
            return False
        return all(
            (a.op, a.arguments, a.results, a.acts) == (b.op, b.arguments, b.results, b.acts)
            for a, b in zip(self.calls, other.calls, strict=True)
        ) and all(_same(value, other.constants.get(name)) for name, value in self.constants.items())


def record(
    work: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, ...], Tape | str]:
    """Do the work and record its ops.

    Args:
        work: returns tensors. All that differs between calls comes from ``inputs``, from memory
            that is not moved, or from torch's generator.
        inputs: tensors that ``play`` replaces by others of the same sizes and strides.

    Returns:
        (outputs, tape): what the work returned, and the tape; instead of a tape, a sentence that
        says why the ops alone do not repeat the work.
    """
    recorder = _Recorder(inputs)
    with recorder:
        outputs = tuple(t.detach() for t in work())
    return outputs, recorder.finished(outputs)


class _NotRecordable(Exception):
    """The ops alone do not repeat the work."""


class _Recorder(TorchDispatchMode):
    records_kernels = True  # see is_watched in vae_fast.backend

    def __init__(self, inputs: Sequence[Tensor | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as torch has it
        self._tape = Tape()
        self._why_not = ""
        # For each storage, its intermediate tensors by geometry. Storages are held, so that no
        # address is used twice. Tensors are not held, because autograd checks whether anyone else
        # holds them.
        self._made: dict[int, dict[Geometry, str]] = {}
        self._held: list[Any] = []
        self._unvarying: set[str] = set()  # tensors with the same values at each playing
        self._outside: dict[Geometry, str] = {}
        self._count = 0
        for t in inputs:
            self._tape.inputs.append("" if t is None else self._make(t))

    def finished(self, outputs: Sequence[Tensor]) -> Tape | str:
        try:
            self._tape.outputs = [self._name_of(t) for t in outputs]
        except _NotRecordable as error:
            self._why_not = self._why_not or str(error)
        if self._why_not:
            return self._why_not
        self._tape.finish()
        return self._tape

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._why_not:  # the work itself continues
            return op(*args, **kwargs)
        given, names = _tensors((args, kwargs)), []
        try:
            names = [self._name_of(t) for t in given]
        except _NotRecordable as error:
            self._why_not = f"{op}: {error}"
        before = [_geometry(t) for t in given]
        result = op(*args, **kwargs)
        if not self._why_not:
            try:
                if before == [_geometry(t) for t in given]:
                    self._write_down(op, args, kwargs, given, names, result)
                elif torch.Tag.inplace_view not in op.tags or op in _RESIZERS:
                    raise _NotRecordable("a tensor's memory is replaced")
                # Otherwise it is another view of its memory, and is found as a view.
            except _NotRecordable as error:
                self._why_not = f"{op}: {error}"
        return result

    def _write_down(
        self, op: Any, args: Any, kwargs: Any, given: Any, names: Any, result: Any
    ) -> None:
        returned = list(result) if isinstance(result, (tuple, list)) else [result]
        made = [t for r in returned for t in (r if isinstance(r, (tuple, list)) else [r])]
        if not all(r is None or isinstance(r, Tensor) for r in made):
            if self._unvarying.issuperset(names):
                return
            raise _NotRecordable("Python reads a tensor's value")
        storages = {_storage(t) for t in given}
        draws = torch.Tag.nondeterministic_seeded in op.tags
        acts = op._schema.is_mutable or draws or not op._schema.returns or op in _WRITERS
        if op._schema.is_mutable:
            self._forget_values(op._schema, args, kwargs)
        elif not acts and (op in _ALIASES or self._are_outside_views(made, storages)):
            return  # found by its geometry, or a view of memory that is not moved
        arguments = [self._render(a) for a in args]
        arguments += [f"{k}={self._render(v)}" for k, v in kwargs.items()]
        results = [None if self._has_name(r, storages) else self._make(r) for r in made]
        if op in _MAKERS:
            self._unvarying.update(r for r in results if r)
        parts = None
        if isinstance(result, (tuple, list)):
            parts = [len(r) if isinstance(r, (tuple, list)) else None for r in returned]
        self._tape.calls.append(_Call(op, arguments, names, results, parts, acts))

    def _are_outside_views(self, made: Sequence[Tensor | None], given: set[int]) -> bool:
        """Whether all are views of memory that the recorded work did not allocate."""
        found = [_storage(r) for r in made if r is not None]
        return all(s in given and s not in self._made for s in found)

    def _has_name(self, t: Tensor | None, given: set[int]) -> bool:
        """Whether the tensor is known: made before, or a view of memory that the work did not
        allocate."""
        if t is None:
            return True
        found = self._made.get(_storage(t))
        return _storage(t) in given if found is None else _geometry(t) in found

    def _forget_values(self, schema: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for t in _tensors(given.get(argument.name)):
                self._unvarying.difference_update(self._made.get(_storage(t), {}).values())

    def _name_of(self, t: Tensor) -> str:
        """The name of an intermediate tensor, or of one from outside, which gets a new name."""
        if type(t) not in (Tensor, torch.nn.Parameter) or t.layout != torch.strided:
            raise _NotRecordable(f"a {type(t).__name__} of layout {t.layout} is not a plain tensor")
        geometry, found = _geometry(t), self._made.get(_storage(t))
        if found is None:
            if geometry not in self._outside:
                self._outside[geometry] = self._constant(t.detach())  # a tensor of our own
            return self._outside[geometry]
        if geometry not in found:  # a view that autograd made without an op
            base = next((name for key, name in found.items() if key[0] == t.dtype), None)
            if base is None or base in self._tape.inputs:  # its place in memory may differ
                raise _NotRecordable(f"a view of {t.dtype} comes from nowhere")
            view = [str(tuple(t.shape)), str(t.stride()), str(t.storage_offset())]
            self._tape.calls.append(
                _Call(_as_strided, [base, *view], [base], [self._make(t)], None, False)
            )
        return found[geometry]

    def _make(self, t: Tensor) -> str:
        name = f"t{self._count}"
        self._count += 1
        self._held.append(t.untyped_storage())
        self._made.setdefault(_storage(t), {})[_geometry(t)] = name
        return name

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._tape.constants)}"
        self._tape.constants[name] = value
        return name

    def _render(self, value: Any) -> str:
        """An argument as Python source."""
        if isinstance(value, Tensor):
            return self._name_of(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(map(self._render, value)) + "]"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        return self._constant(value)


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_iter(tree) if isinstance(t, Tensor)]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _geometry(t: Tensor) -> Geometry:
    bits = t.is_conj(), t.is_neg()
    return (t.dtype, tuple(t.shape), t.stride(), t.storage_offset(), bits, _storage(t))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
            return False
        # The same memory, or a constant that Python creates again each time.
        return a.data_ptr() == b.data_ptr() or equal_bits(a, b)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and (a is b or a == b)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same bits."""
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _compiled(tape: Tape) -> Callable[..., tuple[Tensor, ...]]:
    """The tape as one generated Python function: the least overhead that Python allows."""
    last_use = {name: i for i, call in enumerate(tape.calls) for name in call.reads}
    inputs = [name or f"unused{i}" for i, name in enumerate(tape.inputs)]
    kept = {*tape.outputs, *inputs, *tape.constants}
    scope, lines = dict(tape.constants), []
    for i, call in enumerate(tape.calls):
        scope[f"op{i}"] = _SHORTER.get(call.op, call.op)
        made = [name for name in call.results if name]
        assigned = f"{call.target} = " if made else ""
        lines.append(f"    {assigned}op{i}({', '.join(call.arguments)})")
        dead = {name for name in call.reads if last_use[name] == i}
        dead.update(name for name in made if name not in last_use)
        if gone := sorted(dead - kept):
            lines.append(f"    del {', '.join(gone)}")
    returned = "".join(f"{name}, " for name in tape.outputs)
    source = "\n".join([f"def play({', '.join(inputs)}):", *lines, f"    return ({returned})"])
    exec(compile(source, "<tape>", "exec"), scope)  # noqa: S102 (names, and literals of our making)
    return scope["play"]
