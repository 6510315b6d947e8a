"""Reader of shards: data larger than memory, as plain .npy files beside an index.

A folder of shards holds index.json and, for every shard, an .npy file of images and, if there are
labels, one of labels. `vae_fast.data.pack` writes it. Any tool for .npy files can read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vae_fast.data.order import Cuts, epoch_generator
from vae_fast.data.ranges import UNIT, Range, check_not_binary, range_of
from vae_fast.data.shard_index import (
    DTYPES,
    INDEX,
    check_header,
    check_sha256,
    map_shard,
    read_index,
    read_names,
)
from vae_fast.data.windows import Buffers, PendingWindow, RankWindow, Window, join


@dataclass(frozen=True)
class Shard:
    """One shard, or its rows start to stop."""

    images: Path
    labels: Path | None
    sha256: str
    labels_sha256: str | None
    start: int
    stop: int
    files: Path | None = None  # the names of its samples
    samples: int = 0  # for the whole shard

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ShardData:
    """Data in shards.

    Shuffling: every epoch has a new order of shards. Consecutive shards of `window_bytes` in total
    form a window, and the samples of a window are shuffled among themselves. The current window and
    the next one are in memory, and the last one while a batch of it is in use. Threads gather the
    next window, from one memory-mapped shard each, while the current one is served. (`pack`
    shuffles all samples once, so windows are random samples of the data.)

    Attributes:
        shards: in the index's order.
        shape, dtype: of one sample.
        window_bytes: the size of a window, at least one shard.
        threads: the number of gathering threads.
        verify: compare each shard's SHA-256 with the index's the first time it is used; among
            several ranks each verifies its share of the shards.
        range: the least and largest value of floating-point images, else (0, 1); None if unknown.
        classes: the names of labels 0, 1, ..., or None.
    """

    folder: Path
    shards: tuple[Shard, ...]
    shape: torch.Size
    dtype: torch.dtype
    labelled: bool
    name: str
    provenance: str
    window_bytes: int = 128 << 20
    threads: int = 2
    verify: bool = True
    range: Range | None = UNIT
    classes: tuple[str, ...] | None = None
    _verified: set[Path] = field(default_factory=set, repr=False, compare=False)

    rows = None

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @cached_property
    def files(self) -> list[str] | None:
        """The name of each sample, such as its file's, in the index's order; None if there are
        none."""
        if any(shard.files is None for shard in self.shards):
            return None
        return [
            name
            for shard in self.shards
            for name in read_names(cast(Path, shard.files), shard.samples)[shard.start : shard.stop]
        ]

    def labels_at(self, start: int, stop: int) -> np.ndarray:
        """The labels of samples start to stop, in the index's order."""
        part = self.slice(start, stop).shards
        return np.concatenate([map_shard(cast(Path, s.labels))[s.start : s.stop] for s in part])

    def check_binary(self) -> None:
        """Raise ValueError if the images are uint8 of 0 and 1 alone (`check_not_binary`)."""
        if self.dtype != torch.uint8:
            return

        def samples(rows: Sequence[int]) -> Iterator[torch.Tensor]:
            if len(rows) < len(self):
                yield self.gather(torch.tensor(rows))[0]
            else:
                for shard in self.shards:
                    yield torch.from_numpy(map_shard(shard.images)[shard.start : shard.stop].copy())

        check_not_binary(samples, len(self), self.name)

    def ranged(self) -> ShardData:
        """The same data with its range. An older index has no range, so all data is read."""
        if self.range is not None:
            return self
        found = [
            range_of(torch.from_numpy(np.array(map_shard(shard.images))), str(shard.images))
            for shard in self.shards
        ]
        return replace(self, range=(min(low for low, _ in found), max(high for _, high in found)))

    def slice(self, start: int, stop: int) -> ShardData:
        """Samples start to stop, in the index's order."""
        kept, place = [], 0
        for shard in self.shards:
            first, last = max(start - place, 0), min(stop - place, len(shard))
            if first < last:
                kept.append(replace(shard, start=shard.start + first, stop=shard.start + last))
            place += len(shard)
        return replace(self, shards=tuple(kept))

    def stream(
        self, cuts: Cuts, *, shuffle: bool, seed: int, epoch: int, begin: int = 0, pin: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Images and labels of every batch of `cuts` from batch `begin` on.

        A batch is a view of its window's memory, which is kept as long as the batch is; it is
        pinned if `pin`.

        Raises:
            ValueError: a shard differs from the index; the message names it.
        """
        windows = self._windows(shuffle, seed, epoch)
        buffers = Buffers(pin), Buffers(pin)  # of images and of labels
        todo = ((w, mine) for w in windows if len(mine := w.own_range(cuts, begin)))
        with ThreadPoolExecutor(max(1, self.threads), "vae_fast-shards") as pool:
            try:
                ahead, current, used = None, None, 0
                if begin < len(cuts):
                    ahead = self._begin_window(*next(todo), cuts, buffers, pool)
                for batch in range(begin, len(cuts)):
                    start, stop = cuts.bounds(batch)
                    missing, parts = stop - start, []
                    while missing:
                        if current is None or used == len(current.images):
                            current, used = None, 0  # free its memory before allocating more
                            assert ahead is not None  # as long as something is missing
                            current = ahead.wait()
                            following = next(todo, None)
                            if following is not None:
                                ahead = self._begin_window(*following, cuts, buffers, pool)
                        taken = min(missing, len(current.images) - used)
                        parts.append(current.rows(used, used + taken))
                        used, missing = used + taken, missing - taken
                    yield join(parts)
                    del parts  # otherwise it would keep the window's memory until the next batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _windows(self, shuffle: bool, seed: int, epoch: int) -> list[Window]:
        if shuffle:
            order = torch.randperm(
                len(self.shards), generator=epoch_generator(seed, epoch)
            ).tolist()
        else:
            order = list(range(len(self.shards)))
        row_bytes = prod(self.shape) * self.dtype.itemsize
        windows, place = [], 0
        members: list[int] = []
        for number in order:
            size = sum(len(self.shards[m]) for m in members)
            if members and (size + len(self.shards[number])) * row_bytes > self.window_bytes:
                windows.append(Window(members, place, place + size, None))
                place += size
                members = []
            members.append(number)
        windows.append(Window(members, place, len(self), None))
        if shuffle:
            windows = [replace(w, key=(seed, epoch, 1 + i)) for i, w in enumerate(windows)]
        return windows

    def _begin_window(
        self,
        window: Window,
        mine: torch.Tensor,
        cuts: Cuts,
        buffers: tuple[Buffers, Buffers],
        pool: ThreadPoolExecutor,
    ) -> PendingWindow:
        """Start to gather the samples `mine` of a window, one task for each of its shards."""
        length, rows = window.stop - window.start, mine - window.start
        if window.key is not None:
            rows = torch.randperm(length, generator=epoch_generator(*window.key))[rows]
        # The destination of each of the window's rows, -1 for none: a sort in linear time.
        place = np.full(length, -1)
        place[rows.numpy()] = np.arange(len(rows))
        sources = np.flatnonzero(place >= 0)
        places = place[sources]
        images = buffers[0].take((len(rows), *self.shape), self.dtype)
        labels = buffers[1].take((len(rows),), torch.int64) if self.labelled else None
        tasks, first = [], 0
        for number in window.members:
            shard = self.shards[number]
            low, high = np.searchsorted(sources, [first, first + len(shard)])
            if low < high:
                verify = self.verify and number % cuts.world_size == cuts.rank
                # All rows in ascending order are the shard itself: no extra copy.
                whole = high - low == len(shard)
                chosen = slice(None) if whole else sources[low:high] - first
                to = places[low:high]
                tasks.append(pool.submit(self._copy, shard, chosen, to, images, labels, verify))
            first += len(shard)
        return PendingWindow(RankWindow(images, labels), tasks)

    def _copy(
        self,
        shard: Shard,
        chosen: Any,  # an array or a slice
        to: np.ndarray,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        verify: bool,
    ) -> None:
        """Copy the chosen rows of a shard to their destinations. NumPy releases the GIL."""
        files: list[tuple[Any, Any, torch.Tensor]] = [(shard.images, shard.sha256, images)]
        if labels is not None:
            files.append((shard.labels, shard.labels_sha256, labels))
        for path, expected, target in files:
            source = map_shard(path)
            if verify and path not in self._verified:
                check_sha256(path, source, expected)
                self._verified.add(path)
            rows = source[shard.start : shard.stop][chosen]
            # A file's bools may be bytes other than 0 and 1.
            target.numpy()[to] = rows.view(np.uint8) != 0 if rows.dtype == bool else rows

    def gather(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and labels of a few given samples, in the index's order."""
        images = torch.empty((len(samples), *self.shape), dtype=self.dtype)
        labels = torch.empty(len(samples), dtype=torch.int64) if self.labelled else None
        first = 0
        for shard in self.shards:
            here = ((samples >= first) & (samples < first + len(shard))).nonzero()[:, 0]
            if len(here):
                chosen = (samples[here] - first).numpy()
                self._copy(shard, chosen, here.numpy(), images, labels, False)
            first += len(shard)
        return images, labels


def open_shards(
    folder: str | os.PathLike[str],
    *,
    window_bytes: int = 128 << 20,
    threads: int = 2,
    verify: bool = True,
) -> ShardData:
    """Open a folder of shards: reads the index and checks every file's header and size.

    Args:
        window_bytes, threads, verify: see `ShardData`.

    Raises:
        FileNotFoundError: no index, or a shard is missing.
        ValueError: the index is not one of ours, or a shard's header or size differs from it.
    """
    folder = Path(folder)
    index = read_index(folder)
    shape, dtype = torch.Size(index["shape"]), DTYPES[index["dtype"]]
    shards = []
    for entry in index["shards"]:
        count = entry["samples"]
        images = folder / entry["images"]
        check_header(images, (count, *shape), index["dtype"])
        labels = folder / entry["labels"] if index["labelled"] else None
        if labels is not None:
            check_header(labels, (count,), "int64")
        files = folder / entry["files"] if "files" in entry else None
        sums = entry["sha256"], entry.get("labels_sha256")
        shards.append(Shard(images, labels, *sums, 0, count, files, count))
    data = ShardData(
        folder, tuple(shards), shape, dtype, index["labelled"], index["name"],
        f"{len(shards)} shards in {folder.resolve()}, of {index['provenance']}",
        window_bytes, threads, verify, _range(index, dtype), _classes(index),
    )  # fmt: skip
    if len(data) != index["samples"]:
        raise ValueError(
            f"{folder / INDEX} says {index['samples']} samples, and its shards have {len(data)}: run "
            "pack again"
        )
    return data


def _range(index: dict[str, Any], dtype: torch.dtype) -> Range | None:
    if not dtype.is_floating_point:
        return UNIT
    found: Any = index.get("range")
    known = isinstance(found, list) and len(found) == 2
    if not known or not all(type(n) is float for n in found):
        return None
    return float(found[0]), float(found[1])


def _classes(index: dict[str, Any]) -> tuple[str, ...] | None:
    found = index.get("classes")
    known = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return tuple(found) if known and found else None
