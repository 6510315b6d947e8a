"""Weights, gradients and optimizer state sharded over ranks by torch's FSDP2, with helpers for it.

A sharded parameter is a DTensor: every rank has some of its rows. It is whole only while its module
runs forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_fast.models.interface import Model

Returned = TypeVar("Returned")


def shard(model: nn.Module, device: torch.device, size: int, precision: str) -> nn.Module:
    """Shard ``model`` over ``size`` ranks in place. All ranks must have the same weights.

    If the model has a method ``blocks()``, the modules that it returns are gathered one at a time,
    and the rest of the model together. With bf16, weights are gathered in bfloat16 and gradients
    averaged in float32; the shards themselves stay float32.

    Raises:
        ValueError: a parameter is 0-d, so it has no rows to shard.
    """
    if scalars := [name for name, p in model.named_parameters() if p.dim() == 0]:
        raise ValueError(
            f"FSDP shares parameters out by their rows, and {', '.join(scalars)} of this model "
            "has none, being 0-d: train it with distributed='ddp', or give the parameter the "
            "shape (1,) if the model is your own"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        # Autocast converts inputs: FSDP would also convert beta, a tensor on GPUs, to bfloat16.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    mesh = init_device_mesh(device.type, (size,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Whole only while it runs, like its blocks: a gathered copy of old weights must not hide
    # weights that were swapped in.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    vars(model)["run_whole"] = MethodType(lambda self, function: function(), model)
    register_fsdp_forward_method(model, "run_whole")
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that the model wants sharded one by one."""
    blocks = getattr(model, "blocks", None)
    return list(blocks()) if callable(blocks) and not isinstance(blocks, nn.Module) else []


def run_whole(model: nn.Module, function: Callable[[], Returned]) -> Returned:
    """Call ``function()``, which may call any method of ``model``, not only its forward.

    A sharded model's weights are gathered for this. Collective: call on every rank.
    """
    run = getattr(model, "run_whole", None)
    return function() if run is None else run(function)


def is_sharded(value: object) -> bool:
    """Whether this is a DTensor, without importing DTensor if it is not imported yet."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


def mesh_of(model: Model) -> Any:
    """The device mesh that the model is sharded over, or None."""
    return next((cast(Any, p).device_mesh for p in model.parameters() if is_sharded(p)), None)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: all of it, if it is not sharded."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, a 0-d float32 tensor, the same on all ranks."""
    parts = torch._foreach_norm([local(t) for t in tensors])
    length = torch.linalg.vector_norm(torch.stack(parts)).float()
    if not any(is_sharded(t) for t in tensors):
        return length
    square = length.square()
    dist.all_reduce(square)
    return square.sqrt_()


def like(value: Tensor, other: Tensor) -> Tensor:
    """``value``, sharded like ``other`` if that is sharded. Every rank must have the whole
    value."""
    if not is_sharded(other) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    # No rank sends its value (src_data_rank): each takes the rows of its own copy.
    value = value.to(other.device, other.dtype)
    there = cast(Any, other)
    return distribute_tensor(value, there.device_mesh, there.placements, src_data_rank=None)


def shard_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state_dict, in which tensors of a parameter's shape are sharded like the
    parameter."""

    def placed(number: int, entries: dict[str, Any]) -> dict[str, Any]:
        p = parameters[number]
        return {
            name: like(v, p) if isinstance(v, Tensor) and v.shape == p.shape else v
            for name, v in entries.items()
        }

    return state | {"state": {i: placed(i, entries) for i, entries in state["state"].items()}}
