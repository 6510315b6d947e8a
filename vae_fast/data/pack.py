"""Writer of shards: any source becomes a folder that `open_shards` reads."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from vae_fast.data.arrays import FLOATS
from vae_fast.data.datasets import DatasetData, collate
from vae_fast.data.npy import check_regular, map_npy
from vae_fast.data.order import epoch_order
from vae_fast.data.shard_index import DTYPES, FORMAT, INDEX, VERSION, sha256
from vae_fast.data.shards import ShardData, open_shards
from vae_fast.data.sources import Data, as_data
from vae_fast.data.streams import StreamData
from vae_fast.data_options import DataOptions

PLAN = "pack.json"  # exists while a pack runs, or after an interrupted one
Progress = Callable[[int, int], None]


def pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = 16 << 20,
    shuffle: bool = True,
    seed: int = 0,
    workers: int | None = None,
    keep_floats: bool = False,
    bounded: bool = True,
    progress: Progress | None = None,
    options: DataOptions | None = None,
) -> ShardData:
    """Write a source to a folder of uint8 shards, and open it.

    Each shard is written to a temporary file and renamed when it is whole; the index comes last. An
    interrupted call, repeated with the same arguments, continues: existing shards are read and
    their checksums computed again. The names of classes and files are kept with the numbers.

    Args:
        source: anything that `as_data` accepts: an array, a path, a folder of images, a torch
            Dataset.
        out: the folder to write to; it is created if missing.
        shard_bytes: approximate size of one shard's images.
        shuffle: shuffle all samples once, so that a reader's windows are random samples. `seed`
            determines the order. False keeps the source's order.
        seed: the seed of the shuffling.
        workers: processes that read and write; None for one per core, 0 for this process alone.
        keep_floats: store floating-point images as they are. Otherwise they are stored as uint8,
            and an image that isn't, to a thousandth, made of multiples of 1/255 is an error.
        bounded: as in `as_data`.
        progress: called with (samples done, samples in all) after every shard.
        options: how image files are read (`DataOptions`).

    Raises:
        FileExistsError: the folder holds other files, or other data's shards.
        ValueError, TypeError: the source doesn't fit.
        OSError: the folder cannot be written, or its disk has too little space.
    """
    data = as_data(source, bounded=bounded, options=options)
    if isinstance(data, StreamData):
        raise TypeError(
            f"{data.name} is a stream, and pack reads samples by their number; if it fits in memory, "
            "pack(as_data(dataset, keep_in_memory=True), ...)"
        )
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, and is {shard_bytes}")
    if seed < 0 or (workers is not None and workers < 0):
        raise ValueError(f"seed and workers must be at least 0, and are {seed} and {workers}")
    out = Path(out).expanduser()
    dtype = data.dtype if keep_floats or data.dtype not in FLOATS else torch.uint8
    if dtype not in DTYPES.values():
        raise TypeError(f"{data.name}: {dtype} has no .npy form; convert it to float32")
    plan = _plan(data, dtype, shard_bytes, shuffle, seed) | {"source": _stamp(source)}
    if (out / INDEX).exists():
        return _already_there(out, plan)
    _prepare(out, plan)

    starts = range(0, plan["samples"], plan["shard_samples"])
    entries, done = {}, 0
    for number, entry in _run(data, out, plan, dtype, len(starts), workers):
        entries[number] = entry
        done += entry["samples"]
        if progress is not None:
            progress(done, plan["samples"])
    index = {"format": FORMAT, "version": VERSION, **plan}
    index["shards"] = [entries[number] for number in range(len(starts))]
    if dtype in FLOATS:
        lows, highs = zip(*(entry.pop("range") for entry in index["shards"]), strict=True)
        index["range"] = [min(lows), max(highs)]
    _write_atomically(out / INDEX, json.dumps(index, indent=1).encode())
    (out / PLAN).unlink()
    return open_shards(out)


def _plan(
    data: Data, dtype: torch.dtype, shard_bytes: int, shuffle: bool, seed: int
) -> dict[str, Any]:
    """Everything that determines the shards' content. A pack may continue another with an equal
    plan."""
    sample_bytes = prod(data.shape) * dtype.itemsize
    looks = hashlib.sha256()  # a few samples, to recognise the source
    for row in sorted({0, len(data) // 3, len(data) // 2, len(data) - 1}):
        looks.update(_read(data, torch.tensor([row]))[0].contiguous().view(torch.uint8).numpy())
    return {
        "name": data.name,
        "provenance": data.provenance,
        "samples": len(data),
        "shape": list(data.shape),
        "dtype": str(dtype).removeprefix("torch."),
        "labelled": data.labelled,
        **({} if data.classes is None else {"classes": list(data.classes)}),
        **({} if data.files is None else {"files": True}),
        "shard_samples": max(1, shard_bytes // sample_bytes),
        "order": {"shuffled": shuffle, "seed": seed if shuffle else None},
        "looks": looks.hexdigest(),
    }


def _stamp(source: Any) -> str | None:
    """Names, sizes and times of a source's files, which show changes; None without files."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source).expanduser()
    if not path.exists():
        return None  # a data set's name
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stamp = hashlib.sha256()
    for file in files:
        facts = file.stat()
        stamp.update(f"{file.relative_to(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return stamp.hexdigest()


def _already_there(out: Path, plan: dict[str, Any]) -> ShardData:
    found = open_shards(out)
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    _same(out / INDEX, index, plan)
    return found


def _prepare(out: Path, plan: dict[str, Any]) -> None:
    """Create the folder, or recognise an interrupted pack in it; check the free space."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, and shards go into a folder: name another")
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).exists():
        try:
            check_regular(out / PLAN)
            found = dict(json.loads((out / PLAN).read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise FileExistsError(f"{out / PLAN} is damaged; empty the folder") from error
        _same(out / PLAN, found, plan)
    elif names := sorted(p.name for p in out.iterdir() if not p.name.endswith(".part")):
        raise FileExistsError(
            f"{out} is not empty: it holds {', '.join(names[:3])}; choose another folder"
        )
    written = sum(p.stat().st_size for p in out.glob("*.npy"))
    row_bytes = prod(plan["shape"]) * DTYPES[plan["dtype"]].itemsize + 8 * plan["labelled"]
    needed, free = plan["samples"] * row_bytes - written, shutil.disk_usage(out).free
    if needed > free:
        raise OSError(
            f"{out}: the shards need {needed / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free"
        )
    _write_atomically(out / PLAN, json.dumps(plan, indent=1).encode())


def _same(path: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    if plan["source"] != found.get("source", plan["source"]):
        raise FileExistsError(
            f"{path.parent} holds shards of the source as it was: its files have changed since (by "
            "size or time); choose another folder, or remove this one"
        )
    for name, mine in plan.items():
        if name not in ("provenance", "source") and found.get(name) != mine:
            raise FileExistsError(
                f"{path.parent} holds shards of something else: {name} is {found.get(name)!r} there "
                f"and {mine!r} here; choose another folder"
            )


def _run(
    data: Data, out: Path, plan: dict[str, Any], dtype: torch.dtype, count: int, workers: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write all shards, in any order."""
    if workers is None:
        workers = os.cpu_count() or 1
    job = (data, out, plan, dtype)
    if min(workers, count) <= 1:
        _start(*job, own_process=False)
        yield from map(_write_shard, range(count))
        return
    # fork shares the data with the workers. Without fork, the data must be picklable.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with ProcessPoolExecutor(min(workers, count), context, _start, (*job, True)) as pool:
        try:
            yield from _in_flight(pool, count, 2 * workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_flight(pool: Executor, count: int, most: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Results in order of completion, with at most `most` shards in flight."""
    numbers, pending = iter(range(count)), set[Future[Any]]()
    while True:
        while len(pending) < most and (number := next(numbers, None)) is not None:
            pending.add(pool.submit(_write_shard, number))
        if not pending:
            return
        finished, pending = wait(pending, return_when=FIRST_COMPLETED)
        for task in finished:
            yield task.result()


_JOB: tuple[Data, Path, dict[str, Any], torch.dtype, torch.Tensor | None]


def _start(
    data: Data, out: Path, plan: dict[str, Any], dtype: torch.dtype, own_process: bool
) -> None:
    """Initialise a worker process."""
    global _JOB
    if own_process:
        torch.set_num_threads(1)  # after a fork the parent's thread pool does not exist
    order = plan["order"]
    shuffled = epoch_order(plan["samples"], order["seed"], 0) if order["shuffled"] else None
    _JOB = (data, out, plan, dtype, shuffled)


def _write_shard(number: int) -> tuple[int, dict[str, Any]]:
    """Write one shard unless it exists, and return its entry of the index."""
    data, out, plan, dtype, order = _JOB
    first = number * plan["shard_samples"]
    last = min(first + plan["shard_samples"], plan["samples"])
    paths = {"images": out / f"images-{number:05d}.npy"}
    if plan["labelled"]:
        paths["labels"] = out / f"labels-{number:05d}.npy"
    if not all(path.exists() for path in paths.values()):
        rows = torch.arange(first, last) if order is None else order[first:last]
        images, labels = _read(data, rows)
        if dtype == torch.uint8 and images.is_floating_point():
            images = to_uint8(images, data.name)
        for kind, tensor in (("images", images), ("labels", labels)):
            if kind in paths and tensor is not None:
                _save_atomically(paths[kind], tensor.contiguous().numpy())
    entry: dict[str, Any] = {"samples": last - first}
    if "files" in plan:
        files = data.files
        chosen = range(first, last) if order is None else order[first:last].tolist()
        names = out / f"files-{number:05d}.json"
        _write_atomically(names, json.dumps([cast(Any, files)[row] for row in chosen]).encode())
        entry["files"] = names.name
    for kind, path in paths.items():
        array = map_npy(path)
        if kind == "images" and dtype in FLOATS:
            entry["range"] = (float(array.min()), float(array.max()))
        entry[kind] = path.name
        entry["sha256" if kind == "images" else "labels_sha256"] = sha256(array)
    return number, entry


def to_uint8(images: torch.Tensor, name: str) -> torch.Tensor:
    """Floating-point images whose values are multiples of 1/255 as uint8.

    Raises:
        ValueError: a value differs by more than a thousandth of 1/255, or its dtype's precision.
    """
    scaled = images.double() * 255
    rounded = scaled.round()
    slack = max(1e-3, 255 * torch.finfo(images.dtype).eps)
    worst = (scaled - rounded).abs().max().item()
    if worst > slack or rounded.min() < 0 or rounded.max() > 255:
        raise ValueError(
            f"{name}: its floating-point images aren't multiples of 1/255 in [0, 1], so uint8 would "
            "lose what they hold; pass keep_floats=True to store them as they are"
        )
    return rounded.to(torch.uint8)


def _read(data: Data, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(data, DatasetData):
        return collate([data[int(row)] for row in rows])
    gathered: tuple[torch.Tensor, torch.Tensor | None] = cast(Any, data).gather(rows)
    return gathered


def _save_atomically(path: Path, array: np.ndarray) -> None:
    _replace(path, lambda file: np.lib.format.write_array(file, array, allow_pickle=False))


def _write_atomically(path: Path, contents: bytes) -> None:
    _replace(path, lambda file: file.write(contents))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a temporary file and rename it once it is on the disk: the path is whole or
    missing."""
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
