"""Mini-batches in an order that depends on the seed and the epoch alone, and can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from vae_fast.data.arrays import FLOATS, ArrayData
from vae_fast.data.augment import Augment, augmented
from vae_fast.data.binarize import check_binarizable
from vae_fast.data.datasets import DatasetData, collate
from vae_fast.data.order import Cuts, augment_seed, epoch_generator, epoch_order, noise_key
from vae_fast.data.ranges import check_unit, range_of
from vae_fast.data.shards import ShardData
from vae_fast.data.sources import as_data
from vae_fast.data.streams import StreamData
from vae_fast.functional import gather_batch

# Of small batches, up to so many bytes are gathered at once.
GATHERED_BYTES = 1 << 20

Parts = Iterator[tuple[torch.Tensor, torch.Tensor | None]]


class Batch(NamedTuple):
    """images (B, C, H, W) or (B, D), as the data has them; labels (B,) int64, or None."""

    images: torch.Tensor
    labels: torch.Tensor | None


class Batches:
    """An iterable of `Batch`, one pass over the data each time it is iterated.

    Arrays are put on the device once, in their own dtype (uint8 stays uint8), and batches are
    gathered there; a memory-mapped file stays where it is and only the batch's rows are read.
    Shards are read ahead by threads, and shuffled as `ShardData` says. A torch Dataset is read
    through a DataLoader, an IterableDataset as `StreamData` says. Floating-point images come as
    float32.

    A pass that is iterated to its end moves on to the next epoch; one that is left early doesn't,
    and the next pass begins anew. `state_dict` taken within a pass, before its loop is left, and
    given to `load_state_dict`, there or in another process, makes the next pass go on after the last
    batch that had been handed out; with another number of ranks too, if all ranks' batches together
    are as large as they were. (A Dataset that draws random numbers for its items, as its own
    augmentations do, draws others after a resume in the middle of an epoch.)

    Args:
        data: what `load` gives, or anything that `as_data` takes.
        batch_size: samples per batch.
        shuffle: a new order every epoch, or always the data's own.
        seed: of the order, at least 0.
        drop_last: leave out the last batch where it would be smaller.
        device: where batches are wanted.
        num_workers: of the DataLoader, for a torch Dataset.
        rank, world_size: serve this process's share of every batch among so many processes.
        binarize: hand out bool images, each pixel drawn from Bernoulli(x / 255). The draws depend
            on the seed, the epoch and the place of a sample in the epoch's order alone: not on the
            size of batches, ranks or the device. Without shuffle every pass has the same.
        augment: called with every batch of images, on the device and before it is binarised
            (`build_augment`); what torch's generators give it depends on seed, epoch, batch and
            rank alone, so that a resumed pass has the same.
        unit: floating-point images must lie in [0, 1] after augmentation too, as a Bernoulli
            likelihood needs; the first batch of every pass is looked at.
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
        self.binarize = binarize and self.data.dtype != torch.bool
        if binarize:
            check_binarizable(self.data)
        try:
            self.cuts = Cuts(len(self.data), batch_size, rank, world_size, drop_last)
        except ValueError as error:
            raise ValueError(f"{self.data.name}: {error}") from None
        self._epoch = 0
        self._given = 0  # batches of the current pass that have been handed out
        self._begin = 0  # batch at which the next pass begins
        self._pass: object = None  # the pass under way, which the numbers above are of
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
        """The epoch of the pass under way, or of the next one."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a place to resume at within that epoch is kept."""
        if epoch < 0:
            raise ValueError(f"an epoch is at least 0, and this one is {epoch}")
        if epoch != self._epoch:
            self._epoch, self._given, self._begin, self._pass = epoch, 0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch this is, and what the order depends on: plain numbers."""
        return {"epoch": self._epoch, "batch": self._given, **self._order_depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state` was taken.

        Raises:
            ValueError: it was taken with other data or settings, so that it names another order.
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
        finally:  # left early: the next pass begins anew, and that is where it will be
            if self._pass is mine:
                self._epoch, self._given = epoch + whole, 0

    def _parts(self, epoch: int, begin: int) -> Parts:
        """Images and labels of the batches from ``begin`` on, wherever they come from."""
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
        source = self._placed if resident else self.data
        device = self.device if resident else torch.device("cpu")
        at_once = resident and self.binarize and self.augment is None
        order = self._order(device, epoch)
        for group in self._groups(begin):
            first = self.cuts.bounds(group[0])[0]
            rows = order[first : self.cuts.bounds(group[-1])[1]]
            if at_once:
                labels = None if source.labels is None else source.labels.index_select(0, rows)
                images = self._drawn(source.images, rows, group[0])
            else:
                images, labels = source.gather(rows)
            for batch in group:
                start, stop = self.cuts.bounds(batch)
                own = slice(start - first, stop - first)
                yield images[own], None if labels is None else labels[own]

    def _groups(self, begin: int) -> Iterator[range]:
        """Batches from ``begin`` on, as many together as are gathered at once: small ones cost more
        in the asking than in the bytes. (The batches of one of many ranks are not neighbours.)"""
        bytes_each = self.batch_size * math.prod(self.data.shape) * self.data.dtype.itemsize
        most = max(1, min(8, GATHERED_BYTES // max(1, bytes_each)))
        step = most if self.cuts.world_size == 1 else 1
        for first in range(begin, len(self), step):
            yield range(first, min(first + step, len(self)))

    def _load(self, epoch: int, begin: int) -> Parts:
        # The DataLoader draws its workers' seeds from this generator; else from the global one.
        seed = epoch_generator(self.seed, epoch, self.cuts.rank).initial_seed()
        self._loader.generator.manual_seed(seed)
        self._loader_rows.rows = self._rows(torch.device("cpu"), epoch, begin)
        yield from self._loader

    def _finish(
        self, images: torch.Tensor, labels: torch.Tensor | None, epoch: int, batch: int
    ) -> Batch:
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
            data,
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
    """A DataLoader's batch sampler that gives the rows it was last handed.

    It knows nothing of its Batches: a cycle would leave the worker processes to the garbage
    collector, which can't end them in order.
    """

    def __init__(self) -> None:
        self.rows: Iterator[torch.Tensor] = iter(())

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.rows)
