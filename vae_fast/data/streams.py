"""Any IterableDataset as a source: WebDataset, Streaming, HF datasets, or your own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from vae_fast.data.arrays import FLOATS, ArrayData
from vae_fast.data.datasets import checked_item, collate, first_item
from vae_fast.data.order import Cuts
from vae_fast.data.ranges import UNIT, LabelRange, Range, check_not_binary, range_of

_CHUNK = 32  # items that a worker sends at once
_LOOKED_AT = 256  # items that are checked for uint8 that looks binary


@dataclass(frozen=True)
class StreamData:
    """A stream of samples, read in its own order: the dataset does the shuffling.

    Items are those of `DatasetData`. If the dataset has ``set_epoch``, it is called before each
    pass. A pass that resumes within an epoch reads the earlier samples again and drops them.

    Several ranks: unless the dataset ``splits`` itself, every rank reads the whole stream, which
    must have the same order on all of them, and keeps its share of each batch. If the dataset
    splits itself, a rank serves everything that it gets, cut into pieces as large as its share of
    a batch.

    Attributes:
        dataset: iterated once per pass.
        samples: samples per epoch, over all ranks; further ones in the stream are not read. None
            counts the stream by reading it once.
        splits: whether iteration gives every rank and every worker process different samples.
        takes: the labels that the model accepts; each is checked as it is read.
    """

    dataset: Any
    shape: torch.Size
    dtype: torch.dtype
    labelled: bool
    samples: int | None = None
    splits: bool = False
    name: str = "stream"
    provenance: str = "an IterableDataset"
    bounded: bool = True
    classes: tuple[str, ...] | None = None
    files: None = None
    rows: None = None
    takes: LabelRange | None = None

    @property
    def range(self) -> Range | None:
        """The least and largest value that images can have; None if any."""
        return UNIT if self.bounded or self.dtype not in FLOATS else None

    def check_binary(self) -> None:
        """Raise ValueError if the first samples are uint8 of 0 and 1 alone (`check_not_binary`)."""
        if self.dtype == torch.uint8:

            def samples(rows: Sequence[int]) -> Iterable[torch.Tensor]:
                items = islice(self.dataset, len(rows))
                return (checked_item(self, item, i)[0] for i, item in enumerate(items))

            check_not_binary(
                samples, _LOOKED_AT, f"{self.name}, of which the first were looked at,"
            )

    def __len__(self) -> int:
        return self._counted if self.samples is None else self.samples

    @cached_property
    def _counted(self) -> int:
        warnings.warn(
            f"{self.name} does not say how many samples it has, and is read once to count them; "
            "as_data(dataset, samples=...) spares that",
            stacklevel=4,
        )
        return sum(1 for _ in self.dataset)

    def slice(self, start: int, stop: int) -> StreamData:
        raise ValueError(
            f"{self.name} is a stream, of which no part can be held out: give training and "
            "validation data separately, Trainer(config, train_data=..., val_data=...)"
        )

    def check_workers(self, num_workers: int) -> None:
        """Raise ValueError if worker processes would read the same samples."""
        if num_workers > 0 and not self.splits:
            raise ValueError(
                f"{self.name} is one stream, which {num_workers} workers would each read whole: use "
                "num_workers=0, or a dataset that splits itself, as_data(dataset, splits=True)"
            )

    def stream(
        self, cuts: Cuts, *, epoch: int, begin: int = 0, num_workers: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Images and labels of this rank's part of every batch of `cuts` from ``begin`` on.

        Raises:
            ValueError: the stream ends before the epoch, or an item's shape or dtype differs from
                the first one's.
        """
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        items, place = self._items(num_workers), 0
        for start, stop in self._places(cuts, begin):
            for _ in islice(items, start - place):
                place += 1
            found = [
                checked_item(self, item, place + i)
                for i, item in enumerate(islice(items, stop - start))
            ]
            place += len(found)
            if place < stop:
                self._too_short(place, cuts)
            yield collate(found)

    def _places(self, cuts: Cuts, begin: int) -> Iterator[tuple[int, int]]:
        """Start and stop of each batch in this process's part of the stream."""
        bounds = [cuts.bounds(batch) for batch in range(begin if not self.splits else 0, len(cuts))]
        if not self.splits:
            yield from bounds
            return
        place = 0
        for batch, (start, stop) in enumerate(bounds):
            if batch >= begin:
                yield place, place + stop - start
            place += stop - start

    def _items(self, num_workers: int) -> Iterator[Any]:
        if num_workers == 0:
            return iter(self.dataset)
        loader = DataLoader(
            _Checked(self),
            batch_size=_CHUNK,
            collate_fn=collate,
            num_workers=num_workers,
            generator=torch.Generator(),
        )
        return (
            (image, None if labels is None else int(labels[i]))
            for images, labels in loader
            for i, image in enumerate(images)
        )

    def _too_short(self, found: int, cuts: Cuts) -> None:
        who = f"rank {cuts.rank}'s part of {self.name}" if self.splits else self.name
        raise ValueError(
            f"{who} ended after {found} samples, and an epoch should have {len(self)}"
            + (f" on {cuts.world_size} ranks" if self.splits else "")
            + ": give fewer, as_data(dataset, samples=...)"
        )


class _Checked(IterableDataset[Any]):
    """The items as tensors, for worker processes to send."""

    def __init__(self, data: StreamData):
        self.data = data

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int | None]]:
        for number, item in enumerate(self.data.dataset):
            yield checked_item(self.data, item, number)


def from_stream(
    dataset: Any,
    *,
    samples: int | None = None,
    splits: bool = False,
    name: str | None = None,
    bounded: bool = True,
    labels: bool = True,
) -> StreamData:
    """Look at the first item and wrap the stream. ``bounded`` and ``labels`` as in `from_dataset`.

    Raises:
        TypeError: it can be iterated only once, or its items are not images.
        ValueError: it is empty, values are outside [0, 1], or the length is unknown and each rank
            sees only its own part.
    """
    name = name or type(dataset).__name__
    if iter(dataset) is dataset:
        raise TypeError(
            f"{name} is an iterator, which can be read once only: give an IterableDataset, whose "
            "__iter__ begins anew"
        )
    if samples is None:
        try:
            samples = len(dataset)
        except (TypeError, AttributeError, NotImplementedError):
            samples = None
        if splits:  # its length, if it has one, is probably one rank's
            raise ValueError(
                f"{name} splits itself among ranks, so none knows the length of an epoch: give it, "
                "as_data(dataset, splits=True, samples=...), over all ranks"
            )
    if samples is not None and samples < 1:
        raise ValueError(f"{name}: an epoch has at least 1 sample, got {samples}")
    try:
        item = next(iter(dataset))
    except StopIteration:
        raise ValueError(f"{name}: there is nothing in it") from None
    image, labelled = first_item(item, name, bounded, labels)
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    provenance = f"the stream {kind}" + ("" if samples is None else f", {samples} samples an epoch")
    data = StreamData(
        dataset, image.shape, image.dtype, labelled, samples, splits, name, provenance, bounded
    )
    if bounded and image.dtype == torch.uint8 and int(image.max()) <= 1:
        data.check_binary()
    return data


def stream_in_memory(data: StreamData) -> ArrayData:
    """Read the stream once, whole."""
    items = [
        checked_item(data, item, i) for i, item in enumerate(islice(data.dataset, data.samples))
    ]
    images, labels = collate(items)
    found = range_of(images, data.name) if data.dtype in FLOATS else UNIT
    return ArrayData(images, labels, data.name, data.provenance + ", read into memory", range=found)
