"""The order of an epoch and its division into batches, computed by every process from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


def epoch_generator(*key: int) -> torch.Generator:
    """A separate CPU generator for (seed, epoch, ...). The global random state is not used."""
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


# Streams for other draws from the same seed, separate from the order's.
_BINARIZE, _AUGMENT = 1, 2


def noise_key(seed: int, epoch: int | None = None) -> torch.Tensor:
    """The noise key that binarises an epoch, or every pass without shuffling: 2 int64."""
    key = (seed, 0 if epoch is None else 1 + epoch)
    words = np.random.SeedSequence(key, spawn_key=(_BINARIZE,)).generate_state(2, np.uint64)
    return torch.from_numpy(words.view(np.int64))


def augment_seed(*key: int) -> int:
    """The seed of what augments one batch of (seed, epoch, batch, rank)."""
    words = np.random.SeedSequence(key, spawn_key=(_AUGMENT,)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of `count` samples for one epoch, (count,) int64."""
    return torch.randperm(count, generator=epoch_generator(seed, epoch))


@dataclass(frozen=True)
class Cuts:
    """How `count` samples are divided into global batches, and each batch into the ranks' shares.

    All ranks have the same number of batches and none is empty, so no rank waits for one that has
    finished. Together they have every sample once (with drop_last, all but the last incomplete
    global batch). Order and place are the same on all ranks: a run resumed with another number of
    ranks and the same global batch size sees the same batches.

    Args:
        count: total number of samples.
        batch_size: number of samples in one rank's batch.
        rank, world_size: number of this process, and number of processes.
        drop_last: leave out the last global batch if it is smaller.

    Raises:
        ValueError: a value is out of range, or some rank would have no sample of a batch.
    """

    count: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be from 0 to world_size - 1, and rank is {self.rank} "
                f"and world_size {self.world_size}"
            )
        share = f"{self.batch_size}" + (
            f" on {self.world_size} ranks" if self.world_size > 1 else ""
        )
        if len(self) == 0:
            raise ValueError(
                f"{self.count} samples are fewer than one batch of {share}, "
                "and drop_last leaves out smaller ones"
            )
        if any(stop - start < self.world_size for start, stop in self._last_two()):
            raise ValueError(
                f"{self.count} samples can't be cut into batches of {share} so that every rank has "
                "one of each: use drop_last, or other sizes"
            )

    @property
    def global_batch(self) -> int:
        """Samples in one batch of all ranks together."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches in an epoch, on every rank."""
        whole, rest = divmod(self.count, self.global_batch)
        return whole + (1 if rest and not self.drop_last else 0)

    def global_bounds(self, batch: int) -> tuple[int, int]:
        """Start and stop of one global batch."""
        return self._cut(batch), self._cut(batch + 1)

    def bounds(self, batch: int) -> tuple[int, int]:
        """Start and stop of this rank's share of one batch."""
        start, stop = self.global_bounds(batch)
        length = stop - start
        return (
            start + length * self.rank // self.world_size,
            start + length * (self.rank + 1) // self.world_size,
        )

    def _cut(self, batch: int) -> int:
        place = batch * self.global_batch
        if self.drop_last or place == 0:
            return place
        if place >= self.count:
            return self.count
        # A last batch with fewer samples than ranks takes samples from the batch before it.
        return min(place, self.count - self.world_size)

    def _last_two(self) -> Iterator[tuple[int, int]]:
        return (self.global_bounds(batch) for batch in range(max(0, len(self) - 2), len(self)))
