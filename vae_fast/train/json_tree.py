"""Split a tree of plain values and tensors into JSON and a dict of tensors."""

from __future__ import annotations

from typing import Any

import torch

# JSON has no tensors, tuples or integer keys; each is stored as a dict with one of these keys.
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def without_tensors(node: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``node`` for JSON; its tensors are added to ``tensors``, under their path in the tree."""
    if isinstance(node, torch.Tensor):
        tensors[name] = node
        return {_TENSOR: name}
    if isinstance(node, dict):
        items = {k: without_tensors(v, f"{name}/{k}", tensors) for k, v in node.items()}
        return items if all(isinstance(k, str) for k in node) else {_ITEMS: list(items.items())}
    if isinstance(node, (list, tuple)):
        values = [without_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(node)]
        return {_TUPLE: values} if isinstance(node, tuple) else values
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a checkpoint can't hold {name}, a {type(node).__name__}")


def with_tensors(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``without_tensors``."""
    if isinstance(node, list):
        return [with_tensors(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _TUPLE in node:
        return tuple(with_tensors(v, tensors) for v in node[_TUPLE])
    if _ITEMS in node:
        return {k: with_tensors(v, tensors) for k, v in node[_ITEMS]}
    return {k: with_tensors(v, tensors) for k, v in node.items()}
