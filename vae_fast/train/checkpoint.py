"""Checkpoints: written to a temporary folder and renamed; tensors in safetensors, the rest in JSON,
no pickle.

::

    checkpoints/00000790/model.safetensors      the model's state_dict
    checkpoints/00000790/training.safetensors   every other tensor that the next step depends on
    checkpoints/00000790/shards/                sharded tensors of both, one file for each rank
    checkpoints/00000790/state.json             everything else, sizes and checksums (``manifest``)
    checkpoints/last, checkpoints/best          pointers: files with the name of a folder
    checkpoints/set-aside-00000800              an unusable checkpoint, which is never removed

A folder named by a step is whole: it gets this name after its files are on the disk. ``keeping``
has the rules for removing old checkpoints.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from vae_fast import files
from vae_fast.extras import need
from vae_fast.files import Say, warn
from vae_fast.train import json_tree, keeping, manifest, shard_files
from vae_fast.train.distributed import ALONE, World
from vae_fast.train.keeping import (
    later_checkpoints,
    point,
    pointed_folder,
    prune,
    rewind_to,
    step_folders,
)
from vae_fast.train.manifest import SHARDS, STATE, TRAINING, WEIGHTS, CheckpointError
from vae_fast.train.sharded import is_sharded

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "later_checkpoints",
    "load",
    "load_newest",
    "point",
    "pointed_folder",
    "prune",
    "rewind_to",
    "save",
    "step_folders",
]

_LARGEST = 1 << 62  # bytes of a file of tensors


class Checkpoint(NamedTuple):
    """The result of ``load``: the model's state_dict, and the tree that was passed to ``save``."""

    weights: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path


def save(
    parent: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    world: World = ALONE,
    say: Say = warn,
) -> Path:
    """Write the checkpoint of ``step`` under ``parent`` and point ``last`` at it.

    Args:
        parent: created if missing; its own parent must exist.
        weights: a state_dict.
        state: a tree of dicts, lists, tuples, tensors, strings, numbers, bools and None.
        world: Collective: call on every rank. The main rank writes; every rank writes its part of
            sharded tensors in ``weights`` and ``state``.
        say: receives a line for each file or folder that is in the way and set aside.

    Returns:
        The folder. It is whole; if this raises, it does not exist.

    Raises:
        OSError: it cannot be written; all ranks raise it. Earlier checkpoints are unchanged.
    """
    folder, beside = parent / f"{step:08d}", parent / f".writing-{step:08d}"
    tensors: dict[str, torch.Tensor] = {}
    plain = json_tree.without_tensors(state, "", tensors)
    groups = {WEIGHTS: weights, TRAINING: tensors}
    sharded = {k: t for group in groups.values() for k, t in group.items() if is_sharded(t)}
    begun = False

    def begin() -> None:
        nonlocal begun
        parent.mkdir(exist_ok=True)
        keeping.remove_leftovers(parent, say)
        beside.mkdir()
        begun = True

    def finish() -> None:
        checksums = {f"{SHARDS}/{name}": value for name, value in parts.items()}
        sizes = {name: (beside / name).stat().st_size for name in checksums}
        for name, group in groups.items():
            data = _safetensors().save(
                {k: _storable(t) for k, t in group.items() if k not in sharded}
            )
            checksums[name], sizes[name] = zlib.crc32(data), len(data)
            _write(beside / name, data)
        _write(beside / STATE, manifest.encode(step, plain, checksums, sizes))
        files.sync_folder(beside)
        _replace_folder(beside, folder, say)
        files.sync_folder(parent)
        point(parent, "last", folder, say)

    try:
        world.on_main(begin)
        parts = shard_files.write(beside / SHARDS, sharded, world) if sharded else {}
        world.on_main(finish)
    except BaseException as error:
        if world.is_main and begun:
            shutil.rmtree(beside, ignore_errors=True)  # made by this call
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} can't be written ({error.strerror or error}); those "
                "before it are kept, to resume from once this is mended",
                str(error.filename or folder),
            ) from error
        raise
    return folder


def load(
    folder: Path,
    world: World = ALONE,
    mesh: Any = None,
    check: Callable[[dict[str, Any]], object] = lambda state: None,
) -> Checkpoint:
    """Read a checkpoint, or the one that a pointer names, to the CPU.

    Args:
        world: Collective: call on every rank. If one has an error, all raise it.
        mesh: the device mesh over which to shard what was saved sharded; None reads whole tensors.
        check: called with the state; raises CheckpointError if it cannot be a run's state.

    Raises:
        CheckpointError: it is truncated, damaged, not ours, or of another version.
    """
    folder, problem = Path(folder), None
    try:
        if folder.is_file():
            folder = _pointed(folder)
        content = manifest.read(folder)
        groups = [_tensors(folder, name, content) for name in (WEIGHTS, TRAINING)]
        _check_shards(folder, content, world)
    except CheckpointError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or folder} can't be read: {error.strerror}"
    _agree(problem, world)
    weights, tensors = groups
    shards = {}
    if any(name.startswith(SHARDS) for name in content["crc32"]):
        try:
            shards = shard_files.read(folder / SHARDS, mesh)
        except Exception as error:  # noqa: BLE001 (their checksums fit: they were not ours)
            problem = f"{folder / SHARDS} is damaged: {error}"
    for name, tensor in shards.items():
        # Names made by tree begin with a slash; no weight's name does.
        (tensors if name.startswith("/") else weights)[name] = tensor
    state: dict[str, Any] = {}
    try:
        state = json_tree.with_tensors(content["state"], tensors)
        check(state)
    except CheckpointError as error:
        problem = problem or f"{folder / STATE} is damaged: {error}"
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        problem = problem or f"{folder / STATE} is damaged: {error!r}"
    _agree(problem, world)
    return Checkpoint(weights, state, folder)


def _agree(problem: str | None, world: World) -> None:
    """Collective: raise CheckpointError on every rank if one has a problem."""
    problems = [found for found in world.gather(problem) if found is not None]
    if problems:
        raise CheckpointError(problems[0])


def _pointed(pointer: Path) -> Path:
    folder = pointed_folder(pointer.parent, pointer.name)
    if folder is None:
        raise CheckpointError(f"{pointer} leads to a checkpoint that is not there")
    return folder


def _tensors(folder: Path, name: str, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, if its size and checksum match state.json."""
    path = folder / name
    data = manifest.read_bytes(path, at_most=_LARGEST, exactly=content["bytes"].get(name))
    _check(path, zlib.crc32(data), content["crc32"][name])
    try:
        return _safetensors().load(data)
    except Exception as error:  # noqa: BLE001 (its own kind, KeyError for a dtype, and more)
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _check_shards(folder: Path, content: dict[str, Any], world: World) -> None:
    """Compare the checksums of the shards assigned to this rank."""
    expected = {k: v for k, v in content["crc32"].items() if k.startswith(SHARDS)}
    for name in expected:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not whole: it has no {name}")
    if expected:
        for name, value in shard_files.checksums(folder / SHARDS, world).items():
            _check(folder / SHARDS / name, value, expected.get(f"{SHARDS}/{name}"))


def _check(path: Path, found: int, expected: int | None) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path} is truncated or damaged: its checksum is not the one in {STATE}"
        )


def load_newest(
    parent: Path,
    say: Say = print,
    world: World = ALONE,
    mesh: Any = None,
    check: Callable[[dict[str, Any]], object] = lambda state: None,
) -> Checkpoint | None:
    """The newest usable checkpoint under ``parent``; None if there never was one.

    Damaged ones are skipped with a warning. If all are damaged, raises CheckpointError.
    """

    def find() -> list[Path]:
        keeping.recover(parent)
        return step_folders(parent)

    folders = world.on_main(find)
    for folder in reversed(folders):
        try:
            return load(folder, world, mesh, check)
        except CheckpointError as error:
            say(f"warning: {error}; trying the checkpoint before")
    if folders:
        raise CheckpointError(f"{parent} holds no checkpoint that can be read")
    return None


def _safetensors() -> ModuleType:
    return need("safetensors.torch", "reading and writing checkpoints")


def _storable(t: torch.Tensor) -> torch.Tensor:
    # safetensors refuses tensors that share memory, as tied weights do.
    return t.detach().to("cpu", copy=True).contiguous()


_write, _replace_folder = files.write, keeping.replace_checkpoint
