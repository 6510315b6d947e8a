"""Nothing is lost: which checkpoints are removed, what is set aside, and damaged state files."""

import errno
import json
import os
import shutil
import stat

import pytest
import torch

from vae_fast import files
from vae_fast.train import checkpoint, keeping, manifest
from vae_fast.train.checkpoint import CheckpointError

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}
STATE = {"reached": {"step": 3}, "m": torch.ones(3)}


def save(parent, *steps):
    for step in steps:
        folder = checkpoint.save(parent, step, WEIGHTS, STATE)
    return folder


def names(parent):
    return sorted(p.name for p in parent.iterdir())


def as_version_2(folder):
    """The format before version 3: no checksum of state.json, no sizes, links."""
    content = json.loads((folder / "state.json").read_text())
    del content["checksum"], content["bytes"]
    (folder / "state.json").write_text(json.dumps(content | {"version": 2}, indent=1))
    for name in ("last", "best"):
        if (pointer := folder.parent / name).is_file():
            target = pointer.read_text().strip()
            pointer.unlink()
            pointer.symlink_to(target)


def test_old_checkpoints_and_their_links_are_read_and_replaced(tmp_path):
    folder = save(tmp_path, 1)
    checkpoint.point(tmp_path, "best", folder)
    as_version_2(folder)
    for name in ("last", "best"):
        assert torch.equal(checkpoint.load(tmp_path / name).weights["w"], WEIGHTS["w"])
        assert checkpoint.pointed_folder(tmp_path, name) == folder
    save(tmp_path, 2, 3)
    checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path) == ["00000001", "00000003", "best", "last"]
    checkpoint.point(tmp_path, "best", tmp_path / "00000003")
    checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path) == ["00000003", "best", "last"]
    assert not (tmp_path / "best").is_symlink() and not (tmp_path / "last").is_symlink()


def test_pointers_need_no_links(tmp_path, monkeypatch):
    def refusing(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refusing)
    folder = save(tmp_path, 1, 2)
    assert checkpoint.load(tmp_path / "last").path == folder


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, None])
@pytest.mark.parametrize("what", ["open", "fsync"])
def test_folders_that_cannot_be_synced_are_passed_over(tmp_path, monkeypatch, what, number):
    do = getattr(os, what)

    def refusing(at, *arguments, **options):
        is_folder = os.path.isdir(at) if what == "open" else stat.S_ISDIR(os.fstat(at).st_mode)
        if is_folder:
            raise OSError(number, "no sync of folders") if number else OSError("no sync")
        return do(at, *arguments, **options)

    monkeypatch.setattr(os, what, refusing)
    folder = save(tmp_path, 1, 2)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "last").path == folder


def test_a_disk_that_breaks_while_it_is_synced_is_no_missing_feature(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="step 2 can't be written .Input/output error"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["00000001", "last"]


def test_resuming_sets_unreadable_files_aside(tmp_path):
    """Checkpoints of a newer version, damaged ones and unreadable ones are not lost."""
    save(tmp_path, 1, 2, 3, 4)
    newer = tmp_path / "00000004" / "state.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"version": 99}))
    weights = tmp_path / "00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "00000002" / "state.json").unlink()  # what is left of a copy, or of a disk
    said = []
    found = checkpoint.load_newest(tmp_path, said.append)
    assert found.path.name == "00000001" and len(said) == 3 and "upgrade vae_fast" in said[0]
    checkpoint.rewind_to(found.path, is_best=True, say=said.append)
    save(tmp_path, 2, 3, 4)
    checkpoint.prune(tmp_path, keep=1)
    aside = [f"set-aside-0000000{n}" for n in (2, 3, 4)]
    assert names(tmp_path) == ["00000001", "00000004", "best", "last", *aside]
    assert json.loads((tmp_path / aside[2] / "state.json").read_text())["version"] == 99
    assert len(said) == 6 and all("set-aside-0000000" in line for line in said[3:])


def test_a_checkpoint_that_cannot_be_opened_for_a_moment_comes_back(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    read = type(tmp_path).read_bytes

    def refusing(path):
        if path.parent.name == "00000002":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "read_bytes", refusing)
        said = []
        found = checkpoint.load_newest(tmp_path, said.append)
        assert "can't be read: Permission denied" in said[0]
        checkpoint.rewind_to(found.path, is_best=False, say=said.append)
    assert checkpoint.load(tmp_path / "set-aside-00000002").state["reached"] == {"step": 3}


def test_folders_of_others_stay(tmp_path):
    """Other folders with numeric names, in the places of checkpoints or within them."""
    foreign = ["2024", "20241130", "00000002", "1", "99999999", "²", "٠٠٠٠٠٠٠٣"]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text(name)
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.step_folders(tmp_path) == []
    with pytest.warns(UserWarning, match="not ours to replace: it is kept as set-aside-00000002"):
        save(tmp_path, 1, 2)
    (tmp_path / "00000001" / "notes.txt").write_text("my notes")
    (tmp_path / "00000002" / "elsewhere").symlink_to(tmp_path / "2024")
    checkpoint.rewind_to(tmp_path / "00000001", is_best=False, say=lambda _: None)
    save(tmp_path, 3)
    with pytest.warns(UserWarning, match="holds files that are not a checkpoint's"):
        checkpoint.prune(tmp_path, keep=1)
    for name in foreign:
        place = "set-aside-00000002" if name == "00000002" else name
        assert (tmp_path / place / "thesis.txt").read_text() == name
    kept = [p for p in tmp_path.rglob("notes.txt")]
    assert [p.read_text() for p in kept] == ["my notes"]
    assert "set-aside" in str(kept[0].parent)
    assert checkpoint.load(tmp_path / "last").path.name == "00000003"


def test_a_copy_with_its_step_folder_a_link_elsewhere(tmp_path):
    store, parent = tmp_path / "store", tmp_path / "run"
    store.mkdir(), parent.mkdir()
    save(store, 1)
    (parent / "00000001").symlink_to(store / "00000001")
    assert checkpoint.load_newest(parent).state["reached"] == {"step": 3}
    save(parent, 2, 3)
    checkpoint.prune(parent, keep=1)
    assert (store / "00000001" / "state.json").exists()
    assert (parent / "00000001").is_symlink()


def test_links_at_temporary_names_are_not_followed(tmp_path):
    precious, parent = tmp_path / "precious", tmp_path / "run"
    precious.mkdir(), parent.mkdir()
    (precious / "model.safetensors").write_text("precious")
    (parent / ".writing-00000001").symlink_to(precious)
    (parent / ".removing-00000001").symlink_to(precious)
    (parent / ".writing-old-00000001").symlink_to(precious)
    (parent / ".pointing-last").symlink_to(precious / "model.safetensors")
    (parent / ".writing-my-thesis").mkdir()
    (parent / ".writing-00000007").mkdir()
    (parent / ".writing-00000007" / "thesis.txt").write_text("hello")
    (parent / "last").symlink_to(precious)
    with pytest.warns(UserWarning, match="set-aside"):
        save(parent, 1, 1, 2)
    assert names(precious) == ["model.safetensors"]
    assert (precious / "model.safetensors").read_text() == "precious"
    assert (parent / ".writing-my-thesis").is_dir()
    assert [p.read_text() for p in parent.rglob("thesis.txt")] == ["hello"]
    assert checkpoint.load(parent / "last").path.name == "00000002"
    with pytest.raises(FileExistsError):
        (tmp_path / "there").symlink_to(precious / "model.safetensors")
        files.write(tmp_path / "there", b"overwritten")


def test_a_copy_that_made_folders_of_links_keeps_them(tmp_path):
    folder = save(tmp_path, 1)
    (tmp_path / "last").unlink()
    shutil.copytree(folder, tmp_path / "last")
    assert checkpoint.load(tmp_path / "last").state["reached"] == {"step": 3}
    with pytest.warns(UserWarning, match="is a folder where a pointer belongs"):
        save(tmp_path, 2)
    assert checkpoint.load(tmp_path / "set-aside-last").state["reached"] == {"step": 3}
    assert checkpoint.pointed_folder(tmp_path, "last").name == "00000002"


@pytest.mark.parametrize("text", ["", "../../elsewhere", "00000001\n" * 100, "1", "\x00\xff"])
def test_a_damaged_pointer_removes_nothing(tmp_path, text):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "best").write_text(text)
    with pytest.raises(CheckpointError, match="best is (damaged|truncated)"):
        checkpoint.pointed_folder(tmp_path, "best")
    checkpoint.prune(tmp_path, keep=1)
    assert len(checkpoint.step_folders(tmp_path)) == 3


def test_a_kill_between_the_renames_of_a_replaced_checkpoint_loses_none(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    rename, count = os.rename, []

    class Killed(BaseException):
        pass

    def killing(*arguments):
        count.append(arguments)
        if len(count) == 2:
            raise Killed
        rename(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killing)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert not (tmp_path / "00000002").exists()
    assert checkpoint.load_newest(tmp_path).path.name == "00000002"
    save(tmp_path, 3)
    assert names(tmp_path) == ["00000001", "00000002", "00000003", "last"]


def test_an_interrupted_removal_is_completed(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(keeping, "_remove", lambda *_: None)
        checkpoint.prune(tmp_path, keep=1)
    assert names(tmp_path) == [".removing-00000001", "00000002", "last"]
    save(tmp_path, 3)
    assert names(tmp_path) == ["00000002", "00000003", "last"]


def test_a_failed_removal_is_reported(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)

    def refusing(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.warns(UserWarning, match="00000001 can't be removed: Permission denied"):
        checkpoint.prune(tmp_path, keep=1)


def test_the_run_folder_is_not_made_again(tmp_path):
    with pytest.raises(OSError, match="step 1 can't be written .No such file"):
        checkpoint.save(tmp_path / "removed" / "checkpoints", 1, WEIGHTS, STATE)
    assert not (tmp_path / "removed").exists()


def nested(depth):
    return "[" * depth + "]" * depth


def damages(content):
    """Names and texts of state.json, each damaged in another way."""
    text = json.dumps(content)
    yield "empty", ""
    yield "truncated", text[:-1]
    yield "zeros", "\0" * len(text)
    yield "nested", nested(10_000)
    yield "nested state", text.replace('"state": {', '"state": {"x": ' + nested(10_000) + ", ")
    yield "long number", json.dumps(content | {"step": 0}).replace(": 0", ": " + "9" * 10_000)
    yield "a list", "[]"
    yield "not UTF-8", "\udcff"
    for key in content:
        if key != "format":
            yield f"no {key}", json.dumps({k: v for k, v in content.items() if k != key})
    for key in ("version", "step", "crc32", "bytes", "state", "checksum"):
        for value in (None, "7", -1, 1.5, float("nan"), [], {}, True, 10**30):
            yield f"{key} {value!r}", json.dumps(content | {key: value})
    for name in ("../../x", "shards/../../../etc/passwd", "/etc/passwd", "state.json"):
        yield f"file {name}", json.dumps(content | {"crc32": content["crc32"] | {name: 1}})


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_state_is_a_checkpoint_error_and_the_older_one_is_used(tmp_path, version):
    """Also where it has no checksum, as in version 2."""
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    if version == 2:
        as_version_2(folder)
    state, tried = folder / "state.json", 0
    whole = json.loads(state.read_text())
    for name, text in damages(whole):
        if version == 2 and name.startswith(("bytes", "checksum", "state {}")):
            continue  # it has none; and what a run's state has to have, the run knows
        state.write_text(text, errors="surrogateescape")
        said = []
        assert checkpoint.load_newest(tmp_path, said.append).path.name == "00000001", name
        assert len(said) == 1 and "00000002" in said[0] and len(said[0]) < 700, name
        assert not keeping._is_superseded(folder, "00000002") or version == 2, name
        tried += 1
    assert tried > 50
    for tree in ({"m": {"$tensor": "/nowhere"}}, {"m": {"$tensor": []}}, {"m": {"$items": [1]}}):
        content = json.loads(json.dumps(whole)) | {"state": tree, "version": 2}
        content.pop("checksum", None)
        state.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="state.json is damaged"):
            checkpoint.load(folder)


def test_impossible_sizes_and_non_files_are_refused_at_once(tmp_path):
    folder = save(tmp_path, 1)
    for name in ("state.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        with open(folder / name, "r+b") as file:
            file.truncate(1 << 42)  # takes no room on the disk
        with pytest.raises(CheckpointError, match=f"{name} is truncated or damaged: it has"):
            checkpoint.load(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match=f"{name} is not a file"):
            checkpoint.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    assert checkpoint.load(folder).state["reached"] == {"step": 3}


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, (1 << 40).to_bytes(8, "little"), b"\x02\0\0\0\0\0\0\0[]", b"", b"\x01"]
)
def test_a_damaged_header_of_tensors_is_a_checkpoint_error(tmp_path, header):
    """Also with a correct checksum, when other code wrote it."""
    folder = save(tmp_path, 1)
    data = header + (folder / "model.safetensors").read_bytes()[len(header) :]
    (folder / "model.safetensors").write_bytes(data if header else b"")
    as_version_2(folder)
    content = json.loads((folder / "state.json").read_text())
    with pytest.raises(CheckpointError, match="model.safetensors is"):
        checkpoint.load(folder)
    content["crc32"]["model.safetensors"] = manifest.zlib.crc32(
        (folder / "model.safetensors").read_bytes()
    )
    (folder / "state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        checkpoint.load(folder)
