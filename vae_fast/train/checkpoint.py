"""Checkpoints: written beside and renamed, tensors in safetensors, the rest in JSON, no pickle.

::

    checkpoints/00000790/model.safetensors      the model's state_dict
    checkpoints/00000790/training.safetensors   every other tensor the next step depends on
    checkpoints/00000790/state.json             everything else, and the two files' checksums
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
from typing import Any, NamedTuple

import torch

from vae_fast.train.extras import need

FORMAT, VERSION = "vae_fast checkpoint", 1
_WEIGHTS, _TRAINING, _STATE = "model.safetensors", "training.safetensors", "state.json"


class CheckpointError(ValueError):
    """A folder is not a whole checkpoint of ours; the message says which file and why."""


class Checkpoint(NamedTuple):
    """What ``load`` returns: the model's state_dict, and the tree that ``save`` was given."""

    weights: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path


def save(parent: Path, step: int, weights: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` under ``parent`` and point ``last`` at it.

    Args:
        weights: a state_dict.
        state: a tree of dicts, lists, tuples, tensors, strings, numbers, bools and None.

    Returns:
        The folder, which exists whole or, if this raises, not at all.
    """
    safetensors = need("safetensors.torch", "writing a checkpoint")
    folder, beside = parent / f"{step:08d}", parent / f".writing-{step:08d}"
    parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_kill in parent.glob(".writing-*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    beside.mkdir()
    try:
        tensors: dict[str, torch.Tensor] = {}
        content = {"format": FORMAT, "version": VERSION, "step": step}
        content["state"] = _without_tensors(state, "", tensors)
        content["crc32"] = {}
        for name, group in ((_WEIGHTS, weights), (_TRAINING, tensors)):
            data = safetensors.save({k: _storable(v) for k, v in group.items()})
            content["crc32"][name] = zlib.crc32(data)
            _write(beside / name, data)
        _write(beside / _STATE, json.dumps(content, indent=1).encode())
        _replace_folder(beside, folder)
        _sync(parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    point(parent, "last", folder)
    return folder


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint to the CPU; CheckpointError if it is truncated or not ours."""
    safetensors = need("safetensors.torch", "reading a checkpoint")
    folder = Path(folder)
    try:
        content = json.loads((folder / _STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {_STATE}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / _STATE} is truncated or damaged: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{folder / _STATE} was not written by vae_fast")
    if content["version"] > VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint version {content['version']}, this vae_fast reads up to "
            f"{VERSION}: upgrade vae_fast"
        )
    groups = []
    for name in (_WEIGHTS, _TRAINING):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is not whole: it has no {name}") from None
        if zlib.crc32(data) != content["crc32"][name]:
            raise CheckpointError(
                f"{folder / name} is truncated or damaged: its checksum is not the one in {_STATE}"
            )
        groups.append(safetensors.load(data))
    weights, tensors = groups
    return Checkpoint(weights, _with_tensors(content["state"], tensors), folder)


def load_newest(parent: Path, say: Callable[[str], object] = print) -> Checkpoint | None:
    """The newest whole checkpoint under ``parent``, None if there never was one.

    Damaged ones are passed over, said aloud; if all are, CheckpointError.
    """
    folders = step_folders(parent)
    for folder in reversed(folders):
        try:
            return load(folder)
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


# JSON has no tensors, tuples or integer keys; each is stored as a dict with one of these keys.
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def _without_tensors(node: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``node`` for JSON; its tensors go to ``tensors`` under their path in the tree."""
    if isinstance(node, torch.Tensor):
        tensors[name] = node
        return {_TENSOR: name}
    if isinstance(node, dict):
        items = {k: _without_tensors(v, f"{name}/{k}", tensors) for k, v in node.items()}
        return items if all(isinstance(k, str) for k in node) else {_ITEMS: list(items.items())}
    if isinstance(node, (list, tuple)):
        values = [_without_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(node)]
        return {_TUPLE: values} if isinstance(node, tuple) else values
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a checkpoint can't hold {name}, a {type(node).__name__}")


def _with_tensors(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``_without_tensors``."""
    if isinstance(node, list):
        return [_with_tensors(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _TUPLE in node:
        return tuple(_with_tensors(v, tensors) for v in node[_TUPLE])
    if _ITEMS in node:
        return {k: _with_tensors(v, tensors) for k, v in node[_ITEMS]}
    return {k: _with_tensors(v, tensors) for k, v in node.items()}
