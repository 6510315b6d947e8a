"""Mini-batches in an order that depends only on seed and epoch, and that can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset

from vae_fast.data.arrays import FLOATS, ArrayData
from vae_fast.data.augment import Augment, augmented
from vae_fast.data.binarize import check_binarizable
from vae_fast.data.datasets import DatasetData, collate
from vae_fast.data.order import Cuts, augment_seed, epoch_generator, epoch_order, noise_key
from vae_fast.data.ranges import check_unit, range_of
from vae_fast.data.rows import Rows
from vae_fast.data.shards import ShardData
from vae_fast.data.sources import as_data
from vae_fast.data.streams import StreamData
from vae_fast.functional import gather_batch

# Small batches are gathered together, up to this many bytes.
GATHERED_BYTES = 1 << 20

Parts = Iterator[tuple[torch.Tensor | Rows, torch.Tensor | None]]


class Batch(NamedTuple):
    """images (B, C, H, W) or (B, D), as the data has them; labels (B,) int64, or None."""

    images: Any  # a tensor, or Rows where a reader was asked for them
    labels: torch.Tensor | None


class Batches:
    """An iterable of `Batch`. Each iteration is one pass over the data.

    Arrays are copied to the device once, in their own dtype (uint8 stays uint8), and batches are
    gathered there. Of a memory-mapped file only the batch's rows are read. Threads read shards
    ahead; `ShardData` describes their shuffling. A DataLoader reads a torch Dataset, and
    `StreamData` an IterableDataset. Floating-point images become float32.

    A completed pass advances the epoch. A pass that is left early does not, and the next pass
    starts the epoch again. To resume within an epoch, call `state_dict` inside the loop and
    `load_state_dict` later, in this or another process: the next pass continues after the last
    batch served. The number of ranks may change if the global batch size does not. (A Dataset that
    draws random numbers for its items draws different ones after a resume within an epoch.)

    Args:
        data: the result of `load`, or anything that `as_data` accepts.
        batch_size: samples per batch.
        shuffle: True for a new order every epoch, False for the data's own order.
        seed: the seed of the order, at least 0.
        drop_last: leave out the last batch if it is smaller.
        device: the device of the batches.
        num_workers: worker processes of the DataLoader for a torch Dataset.
        rank, world_size: this process's number and the number of processes. Each serves its share
            of every batch.
        binarize: serve bool images, each pixel drawn from Bernoulli(x / 255). The draws depend only
            on the seed, the epoch and the sample's place in the epoch's order, not on batch size,
            ranks or device. Without shuffle every pass has the same draws.
        augment: called with every batch of images, on the device and before binarisation
            (`build_augment`). Its random draws depend only on seed, epoch, batch and rank, so a
            resumed pass has the same ones.
        unit: require floating-point images in [0, 1] after augmentation, as a Bernoulli likelihood
            needs. The first batch of every pass is checked.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        binarize: bool = False,
        augment: Augment | None = None,
        unit: bool = False,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
            ("rank", rank, 0),
            ("world_size", world_size, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, and is {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, and is {value}")
        self.data = as_data(data)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.device = torch.device(device)
        self.augment, self.unit = augment, unit
        self.by_rows = False  # hand out bytes on the device as `Rows`, where nothing changes them
        self.binarize = binarize and self.data.dtype != torch.bool
        if binarize:
            check_binarizable(self.data)
        try:
            self.cuts = Cuts(len(self.data), batch_size, rank, world_size, drop_last)
        except ValueError as error:
            raise ValueError(f"{self.data.name}: {error}") from None
        self._epoch = 0
        self._given = 0  # batches of the current pass that have been served
        self._begin = 0  # first batch of the next pass
        self._pass: object = None  # the current pass, to which the numbers above belong
        if isinstance(self.data, ArrayData):
            self._placed = self.data.to(self.device)
        elif isinstance(self.data, DatasetData):
            self._loader_rows = _Rows()
            self._loader = self._make_loader(self.data, num_workers)
        elif isinstance(self.data, StreamData):
            self.data.check_workers(num_workers)
            self._workers = num_workers

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.cuts)

    @property
    def epoch(self) -> int:
        """The epoch of the current pass, or of the next one."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. A place to resume at within that epoch is kept."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if epoch != self._epoch:
            self._epoch, self._given, self._begin, self._pass = epoch, 0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the place in it, and what the order depends on, as plain numbers."""
        return {"epoch": self._epoch, "batch": self._given, **self._order_depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue from `state`.

        Raises:
            ValueError: the state belongs to other data or settings, which have another order.
        """
        missing = {"epoch", "batch", *self._order_depends_on()} - set(state)
        if missing:
            raise ValueError(f"this is no state of Batches: it lacks {', '.join(sorted(missing))}")
        for name, mine in self._order_depends_on().items():
            if state[name] != mine:
                raise ValueError(
                    f"these batches can't continue that run: {name} was {state[name]} there, "
                    f"and is {mine} here"
                )
        if not (0 <= state["batch"] <= len(self) and state["epoch"] >= 0):
            raise ValueError(
                f"batch {state['batch']} of epoch {state['epoch']} does not exist: "
                f"an epoch has {len(self)} batches"
            )
        self._epoch = state["epoch"]
        self._given = self._begin = state["batch"]
        self._pass = None

    def __iter__(self) -> Iterator[Batch]:
        mine = self._pass = object()
        begin, self._begin = self._begin, 0
        self._first = begin
        given = self._given = begin
        epoch, whole = self._epoch, False
        self._key = noise_key(self.seed, epoch if self.shuffle else None).to(self.device)
        try:
            for images, labels in self._parts(epoch, begin):
                batch = self._finish(images, labels, epoch, given)
                given += 1
                if self._pass is mine:
                    self._given = given
                yield batch
            whole = True
        finally:  # left early: the next pass starts the epoch again
            if self._pass is mine:
                self._epoch, self._given = epoch + whole, 0

    def _parts(self, epoch: int, begin: int) -> Parts:
        """Images and labels of the batches from ``begin`` on, from any kind of source."""
        data = self.data
        if isinstance(data, ShardData):
            pin, shuffle = self.device.type == "cuda", self.shuffle
            return data.stream(
                self.cuts, shuffle=shuffle, seed=self.seed, epoch=epoch, begin=begin, pin=pin
            )
        if isinstance(data, StreamData):
            return data.stream(self.cuts, epoch=epoch, begin=begin, num_workers=self._workers)
        if isinstance(data, DatasetData):
            return self._load(epoch, begin)
        return self._gather(epoch, begin)

    def _gather(self, epoch: int, begin: int) -> Parts:
        resident = isinstance(self.data, ArrayData) and not self.data.mapped
        source: Any = self._placed if resident else self.data
        device = self.device if resident else torch.device("cpu")
        at_once = resident and self.binarize and self.augment is None
        order = self._order(device, epoch)
        if self._hands_out_rows(resident):
            for batch in range(begin, len(self)):
                rows = order[slice(*self.cuts.bounds(batch))]
                labels = None if source.labels is None else source.labels.index_select(0, rows)
                yield Rows(source.images, rows), labels
            return
        for group in self._groups(begin):
            first = self.cuts.bounds(group[0])[0]
            rows = order[first : self.cuts.bounds(group[-1])[1]]
            if at_once:
                labels = None if source.labels is None else source.labels.index_select(0, rows)
                images = self._drawn(source.images, rows, group[0])
            else:
                images, labels = source.gather(rows)
            if len(group) == 1:
                yield images, labels
            elif labels is None:
                for part in images.split(self.batch_size):
                    yield part, None
            else:
                yield from zip(
                    images.split(self.batch_size), labels.split(self.batch_size), strict=True
                )

    def _hands_out_rows(self, resident: bool) -> bool:
        return (
            self.by_rows
            and resident
            and self.data.dtype in (torch.uint8, torch.bool)
            and cast(Any, self._placed).images.is_contiguous()
            and self.augment is None
            and not self.binarize
        )

    def _groups(self, begin: int) -> Iterator[range]:
        """Groups of batches from ``begin`` on that are gathered together: for small batches a call
        costs more than the copy. (The batches of one rank of several are not adjacent.)"""
        bytes_each = self.batch_size * math.prod(self.data.shape) * self.data.dtype.itemsize
        most = max(1, min(8, GATHERED_BYTES // max(1, bytes_each)))
        step = most if self.cuts.world_size == 1 else 1
        for first in range(begin, len(self), step):
            yield range(first, min(first + step, len(self)))

    def _load(self, epoch: int, begin: int) -> Parts:
        # Without this generator the DataLoader would draw its workers' seeds from the global one.
        seed = epoch_generator(self.seed, epoch, self.cuts.rank).initial_seed()
        self._loader.generator.manual_seed(seed)
        self._loader_rows.rows = self._rows(torch.device("cpu"), epoch, begin)
        yield from self._loader

    def _finish(
        self, images: torch.Tensor | Rows, labels: torch.Tensor | None, epoch: int, batch: int
    ) -> Batch:
        if isinstance(images, Rows):
            return Batch(images, labels)
        images = images.to(self.device, non_blocking=True)
        if self.augment is not None:
            seed = augment_seed(self.seed, epoch, batch, self.cuts.rank)
            images = augmented(self.augment, images, seed)
            if self.unit and batch == self._first and images.is_floating_point():
                name = f"{self.data.name}, augmented"
                check_unit(range_of(images, name), name)
        if self.binarize and images.dtype != torch.bool:
            if images.dtype != torch.uint8:
                raise ValueError(
                    f"augment makes {images.dtype} of what is to be binarised: uint8 is"
                )
            images = self._drawn(images, torch.arange(len(images), device=self.device), batch)
        if images.dtype in FLOATS:
            images = images.float()
        return Batch(images, None if labels is None else labels.to(self.device, non_blocking=True))

    def _drawn(self, images: torch.Tensor, rows: torch.Tensor, batch: int) -> torch.Tensor:
        """The rows of a batch, binarised."""
        first_row = self.cuts.bounds(batch)[0]
        return gather_batch(images, rows, mode="binarize", noise_key=self._key, first_row=first_row)

    def _rows(self, device: torch.device, epoch: int, begin: int) -> Iterator[torch.Tensor]:
        """The samples of each batch from ``begin`` on."""
        order = self._order(device, epoch)
        for batch in range(begin, len(self)):
            yield order[slice(*self.cuts.bounds(batch))]

    def _order(self, device: torch.device, epoch: int) -> torch.Tensor:
        count = len(self.data)
        order = epoch_order(count, self.seed, epoch) if self.shuffle else torch.arange(count)
        return order.to(device)

    def _make_loader(self, data: DatasetData, num_workers: int) -> DataLoader[Any]:
        return DataLoader(
            cast("Dataset[Any]", data),
            batch_sampler=self._loader_rows,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )

    def _order_depends_on(self) -> dict[str, Any]:
        return {
            "samples": len(self.data),
            "global_batch": self.cuts.global_batch,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.cuts.drop_last,
        }


class _Rows:
    """A DataLoader's batch sampler that yields the rows it was last given.

    It holds no reference to its Batches: with a cycle, the garbage collector would end the worker
    processes, and not in order.
    """

    def __init__(self) -> None:
        self.rows: Iterator[torch.Tensor] = iter(())

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.rows)
