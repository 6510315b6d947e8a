"""``DataLoader``: torch's loader, except that batches of data in memory are gathered at once."""

from __future__ import annotations

import copy
import functools
import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch.utils.data
from torch.utils.data import default_collate

from vae_fast.loader.elementwise import same
from vae_fast.loader.sources import Source, checked, numbers, source_of

logger = logging.getLogger("vae_fast")


class _Snapshot:
    """A data set at one moment: its source, or the reason why it has none."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.source: Source | None = None
        self.why_not, self.mark = "", None
        try:
            found = source_of(dataset)
        except Exception as error:  # noqa: BLE001 - what a transform raises is its batch's
            found = f"trying it raised {type(error).__name__}: {error}"
        if isinstance(found, str):
            self.why_not = found
        else:
            self.source, self.mark = found, found.mark()

    def is_current(self, dataset: Any) -> bool:
        """Whether the source still represents the loader's data set."""
        return (
            self.source is not None
            and self.dataset is dataset
            and same(self.source.mark(), self.mark)
        )

    def matches(self) -> bool:
        """Whether the source gives the same values as the data set, for some samples."""
        try:
            return self.source is not None and not checked(self.source, self.dataset)
        except Exception:  # noqa: BLE001 - as above
            return False


class DataLoader(torch.utils.data.DataLoader[Any]):
    """``torch.utils.data.DataLoader`` that serves data sets in memory without visiting single
    samples.

    It *is* torch's loader: the same arguments, attributes, samplers and random draws. For the
    following data sets, a whole batch is gathered at once with the same bits, in the calling
    process, for any ``num_workers``:

    - torchvision's MNIST, FashionMNIST, KMNIST, EMNIST, CIFAR and SVHN under ToTensor (or
      PILToTensor, v2's ToImage and ToDtype), then Normalize, ConvertImageDtype and Lambdas that do
      nothing but calculate and reshape, by their bytecode and by trial;
    - ``TensorDataset``, tensors and arrays;
    - ``Subset`` of these.

    Everything else, and everything random, uses torch's loader. A change of the data or of an
    attribute (``dataset.transform = ...``) takes effect at the next batch; with workers, torch
    would show it at the next epoch.

    Attributes:
        served: a sentence that says how batches are made, and why. It is logged once, at level INFO
            of the logger "vae_fast".
    """

    @property
    def served(self) -> str:
        why_not = self._why_torch()
        if not why_not:
            state = self._state()
            if state.source is not None:
                return f"from memory: {state.source.what}"
            why_not = state.why_not
        return f"by torch.utils.data.DataLoader: {why_not}"

    def _why_torch(self) -> str:
        """The reason why the loader's arguments require torch's loader, or ""."""
        if isinstance(self.dataset, torch.utils.data.IterableDataset):
            return "an IterableDataset has no samples by number"
        if self.batch_sampler is None:
            return "without a batch size, samples are asked for one by one"
        if self.collate_fn is not default_collate:
            return "it has a collate_fn"
        if self.worker_init_fn is not None and self.num_workers > 0:
            return "it has a worker_init_fn"
        return ""

    def _state(self) -> _Snapshot:
        """The data set's present state, checked again only if something has changed."""
        state = self.__dict__.get("_served")
        if state is None or not state.is_current(self.dataset):
            state = self.__dict__["_served"] = _Snapshot(self.dataset)
        return state

    def __iter__(self) -> Any:
        why_not = self._why_torch()
        if not why_not:
            state = self._state()
            if state.source is not None and not state.matches():
                state = self.__dict__["_served"] = _Snapshot(self.dataset)
            why_not = state.why_not
        if not self.__dict__.get("_has_said"):
            self.__dict__["_has_said"] = True
            logger.info("Batches are made %s", self.served)
        return super().__iter__() if why_not else self._from_memory()

    def _from_memory(self) -> Any:
        _keep_freed_memory()
        kept = self._iterator if self.persistent_workers else None
        if kept is not None and not hasattr(kept, "_dataset_fetcher"):
            return super().__iter__()  # its workers have started
        if kept is not None:
            iterator = kept
            iterator._reset(self)
        elif self.num_workers == 0:
            iterator = super().__iter__()
        else:
            # torch's iterator without workers makes the same draws from the same generators in the
            # same order.
            alone = copy.copy(self)
            alone.num_workers, alone.timeout = 0, 0
            iterator = torch.utils.data.DataLoader.__iter__(alone)
            if self.persistent_workers:
                self._iterator = iterator
        if not isinstance(iterator._dataset_fetcher, _Fetcher):
            iterator._dataset_fetcher = _Fetcher(self, iterator._dataset_fetcher)
        if self.num_workers > 0:
            ahead = self.num_workers * (self.prefetch_factor or 2)
            iterator._sampler_iter = _ahead(iterator._sampler_iter, ahead)
        return iterator

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_served"}


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step, at most 64 MiB.

    glibc returns the end of the heap to the system once some hundred KiB of it are free. Gradients
    and the optimizer's temporaries then cost page faults in every step: a tenth of the tutorial's
    step. Freeing a mapped block raises both of glibc's thresholds to the block's size, at most to
    32 MiB (mallopt(3), M_MMAP_THRESHOLD). So this frees one such block, which nothing writes to.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


class _Fetcher:
    """Replaces torch's fetcher, and passes batches that it cannot serve on to that one."""

    def __init__(self, loader: DataLoader, fetcher: Any) -> None:
        self._loader, self._fetcher = loader, fetcher

    def fetch(self, index: Any) -> Any:
        source = self._loader._state().source
        if source is not None:
            try:
                return source.batch(numbers(index))
            except (LookupError, RuntimeError):
                pass  # unusual or invalid indices: torch handles them
        return self._fetcher.fetch(index)


def _ahead(sampler: Iterator[Any], count: int) -> Iterator[Any]:
    """The sampler's batches, requested as early as workers would request them."""
    waiting = deque(islice(sampler, count))

    def batches() -> Iterator[Any]:
        while waiting:
            first = waiting.popleft()
            waiting.extend(islice(sampler, 1))
            yield first

    return batches()
