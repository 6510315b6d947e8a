"""One process or many: who this is, its share of a batch, and sums over all.

Processes are started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. The batch size is
the global one: every rank takes its part of each batch, and a rank's gradient is weighted so that
DistributedDataParallel's mean over ranks is the mean over the whole batch, even an uneven one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae_fast.data import Batches

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


class Share(NamedTuple):
    """A rank's part of a batch; its loss is to be multiplied by ``weight`` before backward."""

    images: Tensor
    labels: Tensor | None
    weight: float = 1.0


class World:
    """The processes that train together: ``rank`` of ``size``; by itself, 0 of 1."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.is_main = self.rank == 0
        self.is_distributed = self.size > 1

    def join(self, device: torch.device) -> torch.device:
        """Meet the other processes; returns the device of this one."""
        if not self.is_distributed:
            return device
        if device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group(BACKENDS.get(device.type))
        return device

    def leave(self) -> None:
        if self.is_distributed and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with its gradients averaged over ranks; its forward is its loss."""
        if not self.is_distributed:
            return model
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def batches(self, data: Any, batch_size: int, **options: Any) -> Batches:
        """This rank's batches of ``data``, of ``batch_size`` samples over all ranks."""
        if batch_size % self.size:
            raise ValueError(
                f"batch_size is of all ranks together: {batch_size} can't be shared by "
                f"{self.size} of them, and {batch_size - batch_size % self.size or self.size} can"
            )
        size = batch_size // self.size
        return Batches(data, size, rank=self.rank, world_size=self.size, **options)

    def shares(self, batches: Batches) -> Iterator[Share]:
        """A pass over ``batches``, each with the weight of this rank's part of it."""
        for images, labels in batches:
            weight = 1.0
            if self.is_distributed:
                number = batches.state_dict()["batch"] - 1
                start, stop = batches.cuts.global_bounds(number)
                weight = len(images) * self.size / (stop - start)
            yield Share(images, labels, weight)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks; every rank has to ask."""
        if self.is_distributed:
            dist.all_reduce(values)
        return values

    def any(self, flag: int) -> int:
        """The largest of the ranks' flags; every rank has to ask."""
        if not self.is_distributed:
            return flag
        device = torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else None
        value = torch.tensor(flag, device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """The ranks' values in their order; every rank has to ask."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main rank's value; every rank has to ask, and waits for the main one."""
        if not self.is_distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
