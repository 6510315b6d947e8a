"""Which checkpoints stay. Nothing is removed that was not proved superseded.

Removed is only what this program wrote, which its state.json tells and no name does, and only once
a whole checkpoint of the same or a later step is there. Anything else that is in the way is set
aside, under a name that says so.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from vae_fast import files
from vae_fast.files import Say, set_aside, warn
from vae_fast.train import manifest
from vae_fast.train.manifest import SHARDS, STATE, TRAINING, WEIGHTS, CheckpointError

_STEP = re.compile(r"\d{8}|[1-9]\d{8,17}", re.ASCII)
_TEMPORARY = re.compile(r"\.(?:writing|removing)-(?:\d{8}|[1-9]\d{8,17})", re.ASCII)
_OLD = ".writing-old-"  # before the name of a checkpoint while one of its step takes its place


def step_folders(parent: Path) -> list[Path]:
    """Folders of checkpoints, whole or damaged, oldest step first.

    A folder of that kind of name that has none of a checkpoint's files is somebody else's.
    """
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    folders = [parent / name for name in names if _STEP.fullmatch(name)]
    return sorted(filter(_may_be_a_checkpoint, folders), key=lambda p: int(p.name))


def _may_be_a_checkpoint(folder: Path) -> bool:
    for name in (STATE, WEIGHTS, TRAINING):
        try:
            os.lstat(folder / name)
            return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # what can't be looked into may be one
            return True
    return False


def pointed(parent: Path, name: str) -> Path | None:
    """The folder that the pointer ``name`` (best, last) leads to; None if there is no such folder.

    Pointers are files with a folder's name. Links, which they were once, and folders, which a copy
    of a run may have made of those links, are read as well.
    """
    path = parent / name
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
            return path.resolve() if path.is_dir() else None
        text = manifest.read_bytes(path, at_most=64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    if not _STEP.fullmatch(text):
        raise CheckpointError(
            f"{path} is damaged: it should hold the name of a folder beside it, such as 00000100"
        )
    return parent / text if (parent / text).is_dir() else None


def point(parent: Path, name: str, folder: Path, say: Say = warn) -> None:
    """Make the pointer ``name`` under ``parent`` lead to ``folder``, at once."""
    pointer = parent / name
    if pointer.is_dir() and not pointer.is_symlink():
        set_aside(pointer, "is a folder where a pointer belongs", say)
    with files.written_beside(pointer) as beside:
        beside.unlink()
        files.write(beside, f"{folder.name}\n".encode())
    files.sync_folder(parent)


def recover(parent: Path) -> None:
    """Give a checkpoint back its name, if a kill came while another was to take its place."""
    for old in parent.glob(f"{_OLD}*"):
        place = parent / old.name.removeprefix(_OLD)
        if _STEP.fullmatch(place.name) and not os.path.lexists(place) and not old.is_symlink():
            os.rename(old, place)


def sweep(parent: Path, say: Say = warn) -> None:
    """Remove what kills have left half-written or half-removed."""
    recover(parent)
    for left in sorted(parent.glob(".*")):
        if (
            _TEMPORARY.fullmatch(left.name)
            or left.name.startswith(_OLD)
            and _is_superseded(left, left.name.removeprefix(_OLD))
        ):
            _remove(left, say)
        elif left.name in (".pointing-best", ".pointing-last") and left.is_symlink():
            left.unlink()  # of an older version


def take_place(new: Path, folder: Path, say: Say = warn) -> None:
    """Rename ``new`` to ``folder``, which may exist: then it is superseded, or set aside."""
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not _is_superseded(folder, folder.name):
        set_aside(folder, "is in the place of a new checkpoint and not ours to replace", say)
        os.rename(new, folder)
    else:
        # A folder can't be replaced at once. One that is whole is kept until the new one is there.
        old = folder.with_name(_OLD + folder.name)
        if os.path.lexists(old):
            set_aside(old, "has a name that is needed", say)
        os.rename(folder, old)
        os.rename(new, folder)
        _remove(old, say)


def later_than(folder: Path) -> list[Path]:
    """The checkpoints beside ``folder`` that are of later steps."""
    return [f for f in step_folders(folder.parent) if int(f.name) > int(folder.name)]


def go_back_to(folder: Path, *, is_best: bool, say: Say = warn) -> None:
    """Make the checkpoint in ``folder`` the last one again; later ones, which were of no use, are
    set aside.

    A kill may have come before the pointers were written, so they are written here again.
    """
    parent = folder.parent
    for later in later_than(folder):
        set_aside(later, f"can't be used, and the run goes on from step {int(folder.name)}", say)
    point(parent, "last", folder, say)
    if is_best:
        point(parent, "best", folder, say)


def prune(parent: Path, keep: int, say: Say = warn) -> None:
    """Remove checkpoints before the last ``keep``, but for ``best``; call it after a ``save``."""
    try:
        last, best = pointed(parent, "last"), pointed(parent, "best")
    except CheckpointError:  # nobody knows what is to stay
        return
    if last is None or not _STEP.fullmatch(last.name):
        return
    passed = [f for f in step_folders(parent) if int(f.name) <= int(last.name)]
    for folder in passed[:-keep]:
        try:
            if (best is None or not folder.samefile(best)) and _is_superseded(folder, folder.name):
                removing = parent / f".removing-{folder.name}"
                os.rename(folder, removing)  # so that a folder with a step's name is whole
                _remove(removing, say)
        except OSError as error:
            say(f"the old checkpoint {folder} can't be removed: {error.strerror}")


def _is_superseded(folder: Path, step: str) -> bool:
    """Whether this is a checkpoint of ours of that step, which a newer one is there for."""
    try:
        return not folder.is_symlink() and manifest.read(folder)["step"] == int(step)
    except CheckpointError:
        return False


def _remove(folder: Path, say: Say) -> None:
    """Remove a checkpoint's own files, and the folder if that was all; links are not followed."""
    if folder.is_symlink() or not folder.is_dir():
        set_aside(folder, "has a name of our temporary folders and is none", say)
        return
    shards = folder / SHARDS
    if shards.is_dir() and not shards.is_symlink():
        for shard in shards.glob("*.safetensors"):
            shard.unlink()
        _remove_if_empty(shards)
    for name in (STATE, TRAINING, WEIGHTS):
        if not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    if not _remove_if_empty(folder):
        set_aside(folder, "holds files that are not a checkpoint's", say)


def _remove_if_empty(folder: Path) -> bool:
    """False if something stays in it, other than what a network drive holds for who has it open."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return all(name.startswith(".nfs") for name in os.listdir(folder))
    return True
