"""One process or many: this process's rank, its share of a batch, and sums over all ranks.

torchrun starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK. The batch size is global:
each rank takes its part of every batch. DistributedDataParallel and FSDP2 take the mean of the
ranks' gradients, so each rank's loss is weighted to make this the mean over the whole batch, also
for an uneven batch.
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
from vae_fast.data.rows import Rows
from vae_fast.joined import Ranks, batch_joined_by
from vae_fast.models.interface import Model
from vae_fast.train.config import TrainConfig
from vae_fast.train.sharded import shard

# On GPUs, gloo in addition to NCCL: messages between steps go from host to host, and wait for no
# device.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class Share(NamedTuple):
    """A rank's share of a batch. Multiply its loss by ``weight`` before backward.

    An epoch's last batch may be smaller than the others. ``part`` is its size divided by theirs. After
    clipping, the gradient is multiplied by it, and so is the learning rate, unless the optimizer is SGD:
    the step is as much shorter as the batch is smaller. A whole step by a gradient with the noise of a few
    samples sets a run back, and so does a whole step with Adam's momentum that such a gradient hardly
    corrects. Loss and gradient norm stay those of the batch's mean.
    """

    images: Any  # a tensor, or Rows where a reader was asked for them
    labels: Tensor | None
    weight: float = 1.0
    part: float = 1.0

    def gathered(self) -> Share:
        """The same with the images themselves."""
        if not isinstance(self.images, Rows):
            return self
        return self._replace(images=self.images.gathered())


class RankFailed(RuntimeError):
    """Another process of the run failed, so this one cannot continue. The message has the
    reason."""


class World:
    """The processes that train together: this is rank ``rank`` of ``size``, 0 of 1 for a single
    process."""

    def __init__(self, size: int | None = None) -> None:
        self.size = _from_environment("WORLD_SIZE", 1, default=1) if size is None else size
        self.rank = self.local_rank = 0
        if self.size > 1 and size is None:
            self.rank = _from_environment("RANK", 0, self.size - 1)
            self.local_rank = _from_environment("LOCAL_RANK", 0, self.size - 1, default=0)
        self.is_main = self.rank == 0
        self._board: Any = None  # where a failing rank writes its reason
        self.is_distributed = self.size > 1

    def join(self, device: torch.device) -> torch.device:
        """Join the other processes; returns this process's device."""
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
        model: Model,
        device: torch.device,
        config: TrainConfig,
        *,
        every_parameter: bool = True,
    ) -> nn.Module:
        """Wrap the model so that gradients are averaged over ranks. ``config.distributed`` decides:
        ddp keeps all of the model on every rank; fsdp keeps a part, and changes ``model`` itself.
        The wrapped model's forward computes the loss.

        Args:
            every_parameter: whether every call's loss gives every parameter a gradient.
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
        """A pass over ``batches``, with the weights of this rank's share of each batch."""
        whole = min(batches.cuts.global_batch, batches.cuts.count)
        for images, labels in batches:
            weight, samples = 1.0, images.shape[0]
            if self.is_distributed:
                number = batches.state_dict()["batch"] - 1
                start, stop = batches.cuts.global_bounds(number)
                weight, samples = samples * self.size / (stop - start), stop - start
            yield Share(images, labels, weight, samples / whole)

    def joint_batch(self, share: Share) -> AbstractContextManager[Any]:
        """Within the block, means over a batch that a model takes are means over all ranks'
        shares."""
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
        """The sum over ranks. Collective: call on every rank."""
        if self.is_distributed:
            dist.all_reduce(values)
        return values

    def first(self, value: Tensor) -> Tensor:
        """The first rank's value, in place. Collective: call on every rank."""
        if self.is_distributed:
            dist.broadcast(value, 0)
        return value

    def maximum(self, *values: float) -> list[float]:
        """The largest of the ranks' values, elementwise. Collective: call on every rank. Waits for
        no device."""
        if not self.is_distributed:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The ranks' values in rank order. Collective: call on every rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main rank's value. Collective: call on every rank; each waits for the main one."""
        if not self.is_distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, do: Callable[[], Any]) -> Any:
        """The result of ``do`` on the main rank. Collective: call on every rank; if it fails, all
        ranks fail."""
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
    def fail_together(self, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Within the block, a failing rank sends its reason to the others, and they fail with it.

        Otherwise they would learn only that a connection was closed. ``but``: exceptions that all
        ranks raise together.
        """
        try:
            yield
        except but:
            raise
        except Exception as error:
            if self._board is None or isinstance(error, RankFailed):
                raise
            # The first rank to fail has the reason. The others fail because it exits.
            reason = f"rank {self.rank} failed: {reason_of(error)}"
            lost = any(word in str(error) for word in ("Connection", "gloo", "NCCL"))
            try:
                first = self._board.compare_set("failed", "", "" if lost else reason).decode()
            except RuntimeError:  # the store ended with the rank that hosted it
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
    """An exception in one line, with its type if the text alone is not clear."""
    text = str(error)
    return text if isinstance(error, (ValueError, OSError)) and text else repr(error)


ALONE = World(1)
