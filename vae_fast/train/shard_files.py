"""Sharded tensors in files, by torch.distributed.checkpoint, without its pickles.

DCP's own format keeps its index, ``.metadata``, as a pickle, which runs code when it is read. Its
writer for Hugging Face's format keeps the same index in the headers of safetensors files, as JSON:
every rank writes one file with its rows of every tensor, and any number of ranks can read them.
"""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_fast.train.distributed import World

_CHUNK = 16 << 20  # bytes read at once


def write(folder: Path, tensors: dict[str, Tensor], world: World) -> dict[str, int]:
    """Write sharded tensors (DTensors) to the new ``folder``, and give each file's checksum.

    Collective: call on every rank. If one cannot write, all raise OSError with its reason.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter

    try:
        dcp.save(
            tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True)
        )
    except CheckpointException as error:
        rank, (failed, _) = min(error.failures.items())
        number = failed.errno if isinstance(failed, OSError) else None
        raise OSError(number, f"rank {rank}: {failed}", str(folder)) from error
    return {k: v for part in world.gather(checksums(folder, world)) for k, v in part.items()}


def checksums(folder: Path, world: World) -> dict[str, int]:
    """The CRC-32 of this rank's share of the files, ``files[rank::size]``."""
    files = sorted(folder.glob("*.safetensors"))[world.rank :: world.size]
    return {path.name: _crc32(path) for path in files}


def read(folder: Path, mesh: Any = None) -> dict[str, Tensor]:
    """The tensors in ``folder``: whole, or sharded by rows over a device mesh."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader

    class TensorsOnly(DefaultLoadPlanner):
        """Refuses everything but tensors: DCP would unpickle it."""

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            raise ValueError(f"{folder} holds {read_item.dest_index.fqn}, which is no tensor")

    found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: _empty(about.size, about.properties.dtype, mesh) for name, about in found.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        dcp.load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            planner=TensorsOnly(),
            no_dist=mesh is None,
        )
    return tensors


def _empty(size: torch.Size, dtype: torch.dtype, mesh: Any) -> Tensor:
    if mesh is None:
        return torch.empty(size, dtype=dtype)
    from torch.distributed.tensor import Shard, empty

    return empty(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
