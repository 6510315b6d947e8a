"""One process or many: who this is, its share of a batch, and sums over all.

Processes are started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. The batch size is
the global one: every rank takes its part of each batch, and a rank's gradient is weighted so that
the mean over ranks, which DistributedDataParallel and FSDP2 take, is the mean over the whole batch,
even an uneven one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae_fast.data import Batches
from vae_fast.models.joined import Ranks, batch_joined_by
from vae_fast.train.config import TrainConfig
from vae_fast.train.sharded import shard

# On GPUs, gloo beside NCCL: what ranks agree on in between goes from host to host, and waits for no
# device.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class Share(NamedTuple):
    """A rank's part of a batch; its loss is to be multiplied by ``weight`` before backward."""

    images: Tensor
    labels: Tensor | None
    weight: float = 1.0


class RankFailed(RuntimeError):
    """Another process of the run failed, so this one can't go on; the message has its reason."""


class World:
    """The processes that train together: ``rank`` of ``size``; by itself, 0 of 1."""

    def __init__(self, size: int | None = None) -> None:
        self.size = _from_environment("WORLD_SIZE", 1, default=1) if size is None else size
        self.rank = self.local_rank = 0
        if self.size > 1 and size is None:
            self.rank = _from_environment("RANK", 0, self.size - 1)
            self.local_rank = _from_environment("LOCAL_RANK", 0, self.size - 1, default=0)
        self.is_main = self.rank == 0
        self._board: Any = None  # where a rank that fails writes why
        self.is_distributed = self.size > 1

    def join(self, device: torch.device) -> torch.device:
        """Meet the other processes; returns the device of this one."""
        if not self.is_distributed:
            return device
        if device.type == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"environment variable LOCAL_RANK is {self.local_rank}, and this machine has "
                    f"{torch.cuda.device_count()} GPUs: start one process for each"
                )
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            _from_environment("MASTER_PORT", 0, 65535)
            if not os.environ.get("MASTER_ADDR"):
                raise _not_set("MASTER_ADDR")
            store, rank, size = next(dist.rendezvous("env://"))
            self._board = dist.PrefixStore("vae_fast", store)
            backend = BACKENDS.get(device.type)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return device

    def leave(self) -> None:
        if self.is_distributed and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(
        self,
        model: nn.Module,
        device: torch.device,
        config: TrainConfig,
        *,
        every_parameter: bool = True,
    ) -> nn.Module:
        """The model with its gradients averaged over ranks, as ``config.distributed`` says: every
        rank has all of it, or a part (then ``model`` itself is changed); its forward is its loss.

        Args:
            every_parameter: every call's loss has a gradient for every parameter.
        """
        if not self.is_distributed:
            return model
        if config.distributed == "fsdp":
            return shard(model, device, self.size, config.precision)
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            model,
            device_ids=ids,
            gradient_as_bucket_view=True,
            find_unused_parameters=not every_parameter,
        )

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

    def joined(self, share: Share) -> AbstractContextManager:
        """What a model defines on a batch's mean is of all ranks' shares together within."""
        if not self.is_distributed:
            return nullcontext()
        return batch_joined_by(
            Ranks(
                mean=lambda mean: self.sum(mean * share.weight) / self.size,
                sum=self.sum,
                first=self.first,
            )
        )

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks; every rank has to ask."""
        if self.is_distributed:
            dist.all_reduce(values)
        return values

    def first(self, value: Tensor) -> Tensor:
        """The first rank's value, in place. Collective: call on every rank."""
        if self.is_distributed:
            dist.broadcast(value, 0)
        return value

    def most(self, *values: float) -> list[float]:
        """The largest of the ranks' values, each; every rank has to ask. No device is waited for."""
        if not self.is_distributed:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

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

    def on_main(self, do: Callable[[], Any]) -> Any:
        """What ``do`` gives on the main rank; every rank has to ask, and fails if it fails."""
        if not self.is_distributed:
            return do()
        value = error = None
        if self.is_main:
            try:
                value = do()
            except Exception as failed:  # noqa: BLE001 (raised below, on every rank)
                error = failed
        value, reason = self.from_main((value, None if error is None else reason_of(error)))
        if error is not None:
            raise error
        if reason is not None:
            raise RankFailed(f"rank 0 failed: {reason}")
        return value

    @contextmanager
    def together(self, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Within, a rank that fails tells the others why, and they fail with its reason.

        They would else learn no more than that a connection is closed. ``but`` are exceptions that
        all ranks raise alike.
        """
        try:
            yield
        except but:
            raise
        except Exception as error:
            if self._board is None or isinstance(error, RankFailed):
                raise
            # The first to fail has the reason; its exit is what makes the others fail.
            reason = f"rank {self.rank} failed: {reason_of(error)}"
            lost = any(word in str(error) for word in ("Connection", "gloo", "NCCL"))
            try:
                first = self._board.compare_set("failed", "", "" if lost else reason).decode()
            except RuntimeError:  # the board went with the rank that had it
                first = ""
            if first == reason or not (lost or first):
                raise
            raise RankFailed(first or f"another rank of this run is gone: {error}") from error


def _from_environment(
    name: str, least: int, most: int = 1 << 20, *, default: int | None = None
) -> int:
    """A whole number that torchrun sets in the environment, or ValueError."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise _not_set(name)
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= most):
        raise ValueError(
            f"environment variable {name} must be a whole number from {least} to {most}, and is "
            f"{text[:40]!r}: start the processes by torchrun, which sets it, or unset WORLD_SIZE to "
            "train in one"
        )
    return int(text)


def _not_set(name: str) -> ValueError:
    return ValueError(
        f"environment variable WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, and {name} is not set: "
        "start the processes by torchrun, which sets both, or unset WORLD_SIZE to train in one"
    )


def reason_of(error: Exception) -> str:
    """An exception in a line, with its kind where the text alone would not say."""
    text = str(error)
    return text if isinstance(error, (ValueError, OSError)) and text else repr(error)


ALONE = World(1)
