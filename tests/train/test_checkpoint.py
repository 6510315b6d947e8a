import json
import os

import pytest
import torch

from vae_fast.train import checkpoint
from vae_fast.train.checkpoint import CheckpointError

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
STATE = {
    "reached": {"step": 3, "best": float("inf"), "seconds": 0.1},
    "optimizer": {"state": {0: {"m": torch.ones(3, dtype=torch.bfloat16)}}, "betas": (0.9, 0.999)},
    "rng": torch.get_rng_state(),
    "list": [1, None, True, "x", {"deep": torch.zeros(0)}],
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_everything_comes_back_with_its_type_and_bits(tmp_path):
    folder = checkpoint.save(tmp_path, 3, WEIGHTS, STATE)
    assert folder == tmp_path / "00000003"
    found = checkpoint.load(folder)
    assert_same(dict(sorted(found.weights.items())), dict(sorted(WEIGHTS.items())))
    assert_same(found.state, STATE)
    assert (tmp_path / "last").read_text() == "00000003\n"
    assert checkpoint.pointed_folder(tmp_path, "last") == folder


def test_tied_and_strided_weights_are_stored(tmp_path):
    w = torch.randn(4, 4)
    found = checkpoint.load(checkpoint.save(tmp_path, 1, {"a": w, "b": w, "c": w.t()}, {}))
    assert torch.equal(found.weights["b"], w) and torch.equal(found.weights["c"], w.t())


def test_no_pickle_is_written(tmp_path):
    folder = checkpoint.save(tmp_path, 3, WEIGHTS, STATE)
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.safetensors",
        "state.json",
        "training.safetensors",
    ]


def test_a_value_that_a_checkpoint_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="/a/b, a set"):
        checkpoint.save(tmp_path, 1, WEIGHTS, {"a": {"b": {1, 2}}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch, fails_at):
    checkpoint.save(tmp_path, 1, WEIGHTS, STATE)
    written = []
    write = checkpoint._write

    def failing(path, data):
        if len(written) == fails_at:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write", failing)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, WEIGHTS, STATE)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "last"]
    assert_same(checkpoint.load(tmp_path / "last").state, STATE)


def test_leftovers_of_a_kill_are_no_checkpoint_and_are_removed(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, WEIGHTS, STATE)
    half = tmp_path / ".writing-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path).path.name == "00000001"
    checkpoint.save(tmp_path, 3, WEIGHTS, STATE)
    assert not half.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_truncated_file_is_named_and_the_checkpoint_before_is_used(tmp_path, name):
    checkpoint.save(tmp_path, 1, WEIGHTS, STATE)
    folder = checkpoint.save(tmp_path, 2, WEIGHTS, STATE)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-20])
    with pytest.raises(CheckpointError, match=f"{name} is truncated or damaged"):
        checkpoint.load(folder)
    said = []
    assert checkpoint.load_newest(tmp_path, said.append).path.name == "00000001"
    assert len(said) == 1 and name in said[0] and "trying the checkpoint before" in said[0]


def test_a_flipped_bit_is_found(tmp_path):
    folder = checkpoint.save(tmp_path, 2, WEIGHTS, STATE)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.load(folder)


def test_foreign_missing_and_newer_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no state.json"):
        checkpoint.load(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"epoch": 3}))
    with pytest.raises(CheckpointError, match="was not written by vae_fast"):
        checkpoint.load(tmp_path)
    folder = checkpoint.save(tmp_path, 1, WEIGHTS, STATE)
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(CheckpointError, match="version 99.*upgrade vae_fast"):
        checkpoint.load(folder)
    with pytest.raises(CheckpointError, match="holds no checkpoint that can be read"):
        checkpoint.load_newest(tmp_path, lambda _: None)
    assert checkpoint.load_newest(tmp_path / "nothing") is None


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 7):
        folder = checkpoint.save(tmp_path, step, WEIGHTS, {})
        if step == 2:
            checkpoint.point(tmp_path, "best", folder)
    checkpoint.prune(tmp_path, keep=2)
    assert [p.name for p in checkpoint.step_folders(tmp_path)] == [
        "00000002",
        "00000005",
        "00000006",
    ]
