"""Which checkpoints are kept. One is removed only after a whole checkpoint of the same or a later step
was found.

Only folders that this program wrote are removed, recognised by their state.json and not by their name.
Anything else that has the name of a new checkpoint is renamed to ``set-aside-...``.
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
# prefix of an old checkpoint while a new one of the same step takes its place
_OLD = ".writing-old-"


def step_folders(parent: Path) -> list[Path]:
    """The checkpoint folders, whole or damaged, by ascending step.

    A folder with such a name and none of a checkpoint's files is not ours, and is left out.
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
        except OSError:  # a folder that cannot be read may be one
            return True
    return False


def pointed_folder(parent: Path, name: str) -> Path | None:
    """The folder that the pointer ``name`` (best, last) names; None if there is no such folder.

    A pointer is a file that contains a folder's name. Older versions wrote links, and copying a run
    may turn links into folders; both are read as well.
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
    """Atomically set the pointer ``name`` under ``parent`` to ``folder``."""
    pointer = parent / name
    if pointer.is_dir() and not pointer.is_symlink():
        set_aside(pointer, "is a folder where a pointer belongs", say)
    with files.atomic_write(pointer) as beside:
        beside.unlink()
        files.write(beside, f"{folder.name}\n".encode())
    files.sync_folder(parent)


def recover(parent: Path) -> None:
    """Restore a checkpoint's name if the process was killed while a new one took its place."""
    for old in parent.glob(f"{_OLD}*"):
        place = parent / old.name.removeprefix(_OLD)
        if _STEP.fullmatch(place.name) and not os.path.lexists(place) and not old.is_symlink():
            os.rename(old, place)


def remove_leftovers(parent: Path, say: Say = warn) -> None:
    """Remove folders that a killed process left half-written or half-removed."""
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


def replace_checkpoint(new: Path, folder: Path, say: Say = warn) -> None:
    """Rename ``new`` to ``folder``. An existing ``folder`` is superseded or set aside."""
    if not os.path.lexists(folder):
        os.rename(new, folder)
    elif not _is_superseded(folder, folder.name):
        set_aside(folder, "is in the place of a new checkpoint and not ours to replace", say)
        os.rename(new, folder)
    else:
        # A folder cannot be replaced atomically. A whole one is kept until the new one is in place.
        old = folder.with_name(_OLD + folder.name)
        if os.path.lexists(old):
            set_aside(old, "has a name that is needed", say)
        os.rename(folder, old)
        os.rename(new, folder)
        _remove(old, say)


def later_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of later steps beside ``folder``."""
    return [f for f in step_folders(folder.parent) if int(f.name) > int(folder.name)]


def rewind_to(folder: Path, *, is_best: bool, say: Say = warn) -> None:
    """Make the checkpoint in ``folder`` the last one again, and set aside later ones, which could
    not be used.

    The pointers are written again, because the process may have been killed before writing them.
    """
    parent = folder.parent
    for later in later_checkpoints(folder):
        set_aside(later, f"can't be used, and the run goes on from step {int(folder.name)}", say)
    point(parent, "last", folder, say)
    if is_best:
        point(parent, "best", folder, say)


def prune(parent: Path, keep: int, say: Say = warn) -> None:
    """Remove checkpoints older than the last ``keep``, except ``best``. Call this after
    ``save``."""
    try:
        last, best = pointed_folder(parent, "last"), pointed_folder(parent, "best")
    except CheckpointError:  # it is not known which checkpoint to keep
        return
    if last is None or not _STEP.fullmatch(last.name):
        return
    passed = [f for f in step_folders(parent) if int(f.name) <= int(last.name)]
    for folder in passed[:-keep]:
        try:
            if (best is None or not folder.samefile(best)) and _is_superseded(folder, folder.name):
                removing = parent / f".removing-{folder.name}"
                # renamed first, so that a folder named by a step is whole
                os.rename(folder, removing)
                _remove(removing, say)
        except OSError as error:
            say(f"the old checkpoint {folder} can't be removed: {error.strerror}")


def _is_superseded(folder: Path, step: str) -> bool:
    """Whether this is our checkpoint of that step, and a newer one exists."""
    try:
        return not folder.is_symlink() and manifest.read(folder)["step"] == int(step)
    except CheckpointError:
        return False


def _remove(folder: Path, say: Say) -> None:
    """Remove a checkpoint's own files, and the folder if nothing else is in it. Links are not
    followed."""
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
    """Remove an empty folder; False if something remains in it, except the files that a network
    drive keeps while they are open."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return all(name.startswith(".nfs") for name in os.listdir(folder))
    return True
