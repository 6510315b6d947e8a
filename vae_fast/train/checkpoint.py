"""Checkpoints: written beside and renamed, tensors in safetensors, the rest in JSON, no pickle.

::

    checkpoints/00000790/model.safetensors      the model's state_dict
    checkpoints/00000790/training.safetensors   every other tensor the next step depends on
    checkpoints/00000790/shards/                of both, what ranks hold in parts, a file of each rank
    checkpoints/00000790/state.json             everything else, and the files' checksums
    checkpoints/last -> 00000790                links, replaced at once
    checkpoints/best -> 00000711

A folder with a step's name is whole: it got the name after its files were on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from vae_fast.train import shard_files, tree
from vae_fast.train.distributed import ALONE, World
from vae_fast.train.extras import need
from vae_fast.train.sharded import is_sharded

FORMAT, VERSION = "vae_fast checkpoint", 2
_WEIGHTS, _TRAINING, _STATE = "model.safetensors", "training.safetensors", "state.json"
_SHARDS = "shards"


class CheckpointError(ValueError):
    """A folder is not a whole checkpoint of ours; the message says which file and why."""


class Checkpoint(NamedTuple):
    """What ``load`` returns: the model's state_dict, and the tree that ``save`` was given."""

    weights: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path


def save(
    parent: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    world: World = ALONE,
) -> Path:
    """Write the checkpoint of ``step`` under ``parent`` and point ``last`` at it.

    Args:
        weights: a state_dict.
        state: a tree of dicts, lists, tuples, tensors, strings, numbers, bools and None.
        world: every rank of it has to call this. The main one writes; of sharded tensors, in
            ``weights`` or ``state``, every rank writes its part.

    Returns:
        The folder, which exists whole or, if this raises, not at all.

    Raises:
        OSError: it can't be written, on all ranks alike. The checkpoints before are as they were.
    """
    folder, beside = parent / f"{step:08d}", parent / f".writing-{step:08d}"
    tensors: dict[str, torch.Tensor] = {}
    content = {"format": FORMAT, "version": VERSION, "step": step}
    content["state"] = tree.without_tensors(state, "", tensors)
    groups = {_WEIGHTS: weights, _TRAINING: tensors}
    sharded = {k: t for group in groups.values() for k, t in group.items() if is_sharded(t)}

    def begin() -> None:
        parent.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in parent.glob(".writing-*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        beside.mkdir()

    def finish() -> None:
        for name, group in groups.items():
            data = _safetensors().save(
                {k: _storable(t) for k, t in group.items() if k not in sharded}
            )
            content["crc32"][name] = zlib.crc32(data)
            _write(beside / name, data)
        _write(beside / _STATE, json.dumps(content, indent=1).encode())
        _replace_folder(beside, folder)
        _sync(parent)
        point(parent, "last", folder)

    try:
        world.on_main(begin)
        parts = shard_files.write(beside / _SHARDS, sharded, world) if sharded else {}
        content["crc32"] = {f"{_SHARDS}/{name}": value for name, value in parts.items()}
        world.on_main(finish)
    except BaseException as error:
        if world.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"the checkpoint of step {step} can't be written ({error.strerror or error}); those "
                "before it are kept, to resume from once this is mended",
                str(error.filename or folder),
            ) from error
        raise
    return folder


def load(folder: Path, world: World = ALONE, mesh: Any = None) -> Checkpoint:
    """Read a checkpoint to the CPU; CheckpointError if it is truncated or not ours.

    Args:
        world: every rank of it has to call this, and all of them get the error that one has.
        mesh: the device mesh over which to shard what was saved sharded; None reads it whole.
    """
    folder, problem = Path(folder), None
    try:
        content = _content(folder)
        groups = [_tensors(folder, name, content) for name in (_WEIGHTS, _TRAINING)]
        _check_shards(folder, content, world)
    except CheckpointError as error:
        problem = str(error)
    problems = [found for found in world.gather(problem) if found is not None]
    if problems:
        raise CheckpointError(problems[0])
    weights, tensors = groups
    if any(name.startswith(_SHARDS) for name in content["crc32"]):
        for name, tensor in shard_files.read(folder / _SHARDS, mesh).items():
            # What tree named begins with a slash; no weight's name does.
            (tensors if name.startswith("/") else weights)[name] = tensor
    return Checkpoint(weights, tree.with_tensors(content["state"], tensors), folder)


def _content(folder: Path) -> dict[str, Any]:
    """What state.json holds."""
    try:
        content = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {_STATE}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / _STATE} is truncated or damaged: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{folder / _STATE} can't be read: {error.strerror}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / _STATE} was not written by vae_fast")
    if lacks := [key for key in ("version", "crc32", "state") if key not in content]:
        raise CheckpointError(f"{folder / _STATE} is damaged: it lacks {', '.join(lacks)}")
    if content["version"] != VERSION:
        what = "upgrade vae_fast" if content["version"] > VERSION else "use the one that wrote it"
        raise CheckpointError(
            f"{folder} has checkpoint version {content['version']}, this vae_fast reads "
            f"{VERSION}: {what}"
        )
    return content


def _tensors(folder: Path, name: str, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a safetensors file holds, if its checksum is the one in state.json."""
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not whole: it has no {name}") from None
    except OSError as error:
        raise CheckpointError(f"{folder / name} can't be read: {error.strerror}") from None
    _check(folder / name, zlib.crc32(data), content["crc32"][name])
    return _safetensors().load(data)


def _check_shards(folder: Path, content: dict[str, Any], world: World) -> None:
    """Compare the shards' checksums, of those that fall to this rank."""
    expected = {k: v for k, v in content["crc32"].items() if k.startswith(_SHARDS)}
    for name in expected:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not whole: it has no {name}")
    if expected:
        for name, value in shard_files.checksums(folder / _SHARDS, world).items():
            _check(folder / _SHARDS / name, value, expected.get(f"{_SHARDS}/{name}"))


def _check(path: Path, found: int, expected: int | None) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path} is truncated or damaged: its checksum is not the one in {_STATE}"
        )


def load_newest(
    parent: Path, say: Callable[[str], object] = print, world: World = ALONE, mesh: Any = None
) -> Checkpoint | None:
    """The newest whole checkpoint under ``parent``, None if there never was one.

    Damaged ones are passed over, said aloud; if all are, CheckpointError.
    """
    folders = world.from_main(step_folders(parent))
    for folder in reversed(folders):
        try:
            return load(folder, world, mesh)
        except CheckpointError as error:
            say(f"warning: {error}; trying the checkpoint before")
    if folders:
        raise CheckpointError(f"{parent} holds no checkpoint that can be read")
    return None


def step_folders(parent: Path) -> list[Path]:
    """Folders of checkpoints, oldest step first."""
    if not parent.is_dir():
        return []
    return sorted((p for p in parent.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def point(parent: Path, name: str, folder: Path) -> None:
    """Make the link ``name`` under ``parent`` lead to ``folder``, at once."""
    link, beside = parent / name, parent / f".pointing-{name}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder.name)
    if link.is_dir() and not link.is_symlink():  # a copy of a run may have folders for links
        shutil.rmtree(link)
    os.replace(beside, link)


def go_back_to(saved: Checkpoint, *, is_best: bool) -> None:
    """Make ``saved`` the last checkpoint again: later folders, damaged ones, are removed.

    A kill may have come before the links were made, so they are made here again.
    """
    parent = saved.path.parent
    for folder in step_folders(parent):
        if int(folder.name) > int(saved.path.name):
            shutil.rmtree(folder)
    point(parent, "last", saved.path)
    if is_best:
        point(parent, "best", saved.path)


def prune(parent: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints, ``best`` and ``last``."""
    kept = {(parent / name).resolve() for name in ("best", "last")}
    for folder in step_folders(parent)[:-keep]:
        if folder.resolve() not in kept:
            shutil.rmtree(folder)


def _replace_folder(new: Path, folder: Path) -> None:
    if folder.exists():
        # A folder can't be replaced at once. One that is whole is kept until the new one is there.
        old = folder.with_name(f".writing-old-{folder.name}")
        os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old)
    else:
        os.rename(new, folder)


def _safetensors() -> ModuleType:
    return need("safetensors.torch", "reading and writing checkpoints")


def _storable(t: torch.Tensor) -> torch.Tensor:
    # safetensors refuses tensors that share memory, as tied weights do.
    return t.detach().to("cpu", copy=True).contiguous()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
