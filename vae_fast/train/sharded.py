"""Weights, gradients and optimizer state spread over ranks: torch's FSDP2, and what it asks for.

A sharded parameter is a DTensor: every rank has some of its rows. It is whole while the module that
has it runs forward or backward, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Returned = TypeVar("Returned")


def shard(model: nn.Module, device: torch.device, size: int, precision: str) -> nn.Module:
    """Shard ``model`` over ``size`` ranks in place; every rank has to have the same weights.

    Modules that ``model.blocks()`` names, where it has such a method, are gathered one at a time; the
    rest of the model as one more. With bf16, weights are gathered in bfloat16 and gradients
    averaged in float32; the shards themselves stay float32.

    Raises:
        ValueError: a parameter is 0-d, of which there is nothing to share out.
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
        # Inputs are left to autocast: beta, a tensor on GPUs, would become bfloat16 too.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    mesh = init_device_mesh(device.type, (size,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Whole only while it runs, like its blocks: weights put in their place must not be passed over
    # for a gathered copy of those before.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.run_whole = MethodType(lambda self, function: function(), model)
    register_fsdp_forward_method(model, "run_whole")
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules that the model names as worth sharding one by one."""
    blocks = getattr(model, "blocks", None)
    return list(blocks()) if callable(blocks) and not isinstance(blocks, nn.Module) else []


def run_whole(model: nn.Module, function: Callable[[], Returned]) -> Returned:
    """``function()``, which may call any method of ``model`` and not its forward alone.

    Of a sharded model the weights are gathered for it, so every rank has to call this alike.
    """
    run = getattr(model, "run_whole", None)
    return function() if run is None else run(function)


def is_sharded(value: object) -> bool:
    """Whether this is a DTensor; without importing what makes them, as long as nobody else did."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


def mesh_of(model: nn.Module) -> Any:
    """The device mesh that the model is sharded over, or None."""
    return next((p.device_mesh for p in model.parameters() if is_sharded(p)), None)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: all of it, if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


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
    """``value`` sharded as ``other`` is, if it is; every rank has to have the whole value."""
    if not is_sharded(other) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    # No rank is asked for its value (src_data_rank): each takes its rows of its own.
    value = value.to(other.device, other.dtype)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def shard_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state_dict with what has a parameter's shape sharded as that parameter is."""

    def placed(number: int, entries: dict[str, Any]) -> dict[str, Any]:
        p = parameters[number]
        return {
            name: like(v, p) if isinstance(v, Tensor) and v.shape == p.shape else v
            for name, v in entries.items()
        }

    return state | {"state": {i: placed(i, entries) for i, entries in state["state"].items()}}
