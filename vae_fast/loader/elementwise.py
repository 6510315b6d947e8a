"""Decide from a transform's code whether it is the same function of each value of an image.

Trying a transform on samples proves nothing about other samples: one that erases a part of every
hundredth image would pass. So its code is checked before it is tried: known classes, and functions
whose bytecode only reshapes, casts, compares and calculates, without branches. torch's loader
handles all other functions.
"""

from __future__ import annotations

import dis
import inspect
import sys
import types
from typing import Any

import torch

from vae_fast.layers import has_hooks

Mark = tuple[Any, ...]  # the parts of an object when it was checked; see ``same``


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# Tensor methods and torch functions that are exact for each element, or keep the order. Left out:
# sums and exp (rounding may differ), random draws, and functions of several elements.
_NAMES = _words(
    "view reshape flatten ravel squeeze unsqueeze contiguous clone detach size shape dim ndim numel",
    "float double half to type type_as int long short bool byte dtype",
    "round floor ceil trunc abs neg clamp clip clamp_min clamp_max",
    "add sub subtract mul multiply div divide true_divide gt lt ge le eq ne",
    "torch float16 float32 float64 uint8 int8 int16 int32 int64",
)
_FUNCTIONS = (torch.flatten, torch.ravel, torch.squeeze, torch.round, torch.Tensor.float)
_OPERATORS = _words("+ - * / // % += -= *= /= //= %=")
_OPCODES = _words(
    "CACHE NOP RESUME COPY_FREE_VARS PUSH_NULL KW_NAMES PRECALL CALL CALL_KW CALL_METHOD",
    "CALL_FUNCTION CALL_FUNCTION_KW COMPARE_OP UNARY_NEGATIVE BUILD_TUPLE BUILD_LIST POP_TOP COPY",
    "SWAP DUP_TOP ROT_TWO ROT_THREE RETURN_VALUE RETURN_CONST LOAD_CONST LOAD_SMALL_INT LOAD_DEREF",
    "BINARY_ADD BINARY_SUBTRACT BINARY_MULTIPLY BINARY_TRUE_DIVIDE BINARY_FLOOR_DIVIDE",
    "BINARY_MODULO INPLACE_ADD INPLACE_SUBTRACT INPLACE_MULTIPLY INPLACE_TRUE_DIVIDE NOT_TAKEN",
)
_LOCALS = ("LOAD_FAST", "STORE_FAST")


def same(a: Any, b: Any) -> bool:
    """Whether two marks belong to one unchanged object: the same parts, equal numbers."""
    if type(a) is tuple and type(b) is tuple:
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or (type(a) is type(b) and type(a) in (int, float, bool, str) and a == b)


def mark_of(transform: Any) -> Mark | str:
    """The mark of ``transform`` if it maps an image to a tensor value by value; else the reason."""
    vision = sys.modules.get("torchvision.transforms")
    if vision is None:
        return "its transform is none of torchvision's"
    parts = _parts(transform, vision)
    if not parts or _name(parts[0]) not in ("ToTensor", "PILToTensor", "ToImage"):
        return "its transform does not begin with ToTensor, PILToTensor or ToImage"
    marks: list[Any] = [torch.get_default_dtype()]
    for part in parts:
        found = _mark_of_part(part)
        if isinstance(found, str):
            return found
        marks += part, found
    return tuple(marks)


def _name(part: Any) -> str:
    """The name of a torchvision transform's class, or ""."""
    of_torchvision = type(part).__module__.startswith("torchvision.transforms.")
    return type(part).__name__ if of_torchvision else ""


def _parts(transform: Any, vision: Any) -> list[Any]:
    if _name(transform) == "Compose" and isinstance(transform.transforms, (list, tuple)):
        return [part for each in transform.transforms for part in _parts(each, vision)]
    return [transform]


def _mark_of_part(part: Any) -> Mark | str:
    name = _name(part)
    if isinstance(part, torch.nn.Module) and ("forward" in vars(part) or has_hooks(part)):
        return f"its {name} has hooks, or a forward of its own"
    if name in ("ToTensor", "PILToTensor", "ToImage"):
        return ()
    if name == "ConvertImageDtype":
        return (part.dtype,)
    if name == "ToDtype" and isinstance(part.dtype, torch.dtype):
        return (part.dtype, part.scale)
    if name == "Normalize":
        try:
            return tuple(map(float, part.mean)), tuple(map(float, part.std))
        except (TypeError, ValueError):
            return "its Normalize has no numbers for mean and std"
    if name == "Lambda" and getattr(part, "types", (object,)) == (object,):
        return _mark_of_function(part.lambd)
    return (
        f"its transform has a {type(part).__name__}, which need not be the same function of every "
        "value"
    )


def _mark_of_function(function: Any) -> Mark | str:
    if any(function is each for each in _FUNCTIONS):
        return (function,)
    name = getattr(function, "__qualname__", type(function).__name__)
    if type(function) is not types.FunctionType:
        return f"its Lambda's {name} is not a function that can be inspected"
    code = function.__code__
    strange = f"its Lambda's {name} may do more than calculate and reshape, by its "
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return strange + "yield or await"
    values: list[Any] = [code, *(function.__defaults__ or ())]
    values += (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            return strange + "unset closure"
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL":
            if step.argval not in function.__globals__:
                return strange + str(step.argval)
            values.append(function.__globals__[step.argval])
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if step.argval not in _NAMES:
                return strange + str(step.argval)
        elif step.opname == "BINARY_OP":
            if step.argrepr not in _OPERATORS:
                return strange + step.argrepr
        elif step.opname not in _OPCODES and not step.opname.startswith(_LOCALS):
            return strange + step.opname
    mark = [_plain(value) for value in values[1:]]
    if None in mark:
        value = values[1 + mark.index(None)]
        return f"its Lambda's {name} uses a {type(value).__name__}, which may change"
    return (code, *mark)


def _plain(value: Any) -> Any:
    """The value if a function that reads it changes only with the value; else None."""
    numbers = (int, float, bool, torch.dtype)
    if value is torch or type(value) in numbers:
        return value
    if type(value) is tuple and all(type(each) in numbers for each in value):
        return value
    return None
