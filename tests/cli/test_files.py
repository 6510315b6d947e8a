"""Damaged or hostile files on the command line give one sentence, quickly."""

import json
import os
import re
import time
import zipfile

import numpy as np
import pytest
import yaml

from vae_fast.cli import main
from vae_fast.train import RunFolder, TrainConfig, Trainer
from vae_fast.train.config import from_dict

SMALL = {
    "model_args": {"latent_dim": 2, "network_options": {"hidden": [8]}}, "data": "small.npy",
    "epochs": 1, "batch_size": 20, "device": "cpu", "tensorboard": "off",
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


@pytest.fixture
def run(workplace):
    Trainer(TrainConfig(**SMALL, out="run")).fit()
    return workplace / "run"


def said(capsys, *arguments, status=1):
    """The line that a failing command prints; a command that hangs fails the test."""
    began = time.process_time()
    assert main([str(argument) for argument in arguments]) == status
    assert time.process_time() - began < 10
    error = capsys.readouterr().err
    assert error.startswith("vae-fast ") and error.count("\n") == 1 and len(error) < 600, error
    return error


def bomb(depth=12):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for i in range(1, depth):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join(lines)


CONFIGS = {
    "aliases": (bomb(), "stands for more than 10,000 values"),
    "aliases in a known key": ("model_args:\n  " + bomb().replace("\n", "\n  "), "10,000 values"),
    "merge keys": ("a: &a {x: 1}\nmodel_args: {<<: [" + "*a, " * 12_000 + "*a]}", "10,000 values"),
    "itself": ("model_args: &a\n  hidden: *a\n", "an alias within what it stands for"),
    "deep": ("model_args: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep|nesting depth"),
    "deep mappings": ("model_args: " + "{a: " * 5000 + "1" + "}" * 5000, "nested more than 50"),
    "large": ("# " + "x" * (1 << 20) + "\nepochs: 1", "at most 65,536 are read"),
    "no yaml": ("epochs: [1", "is not YAML"),
    "a tag": ("model: !!python/object/apply:os.system [touch ran]", "is not YAML"),
    "a list": ("- epochs", "must hold names with values"),
    "text": ("train", "must hold names with values"),
    "bytes": (b"epochs: \xff\xfe", "is not UTF-8 text"),
    "control": (b"epochs: \x00", "is not YAML"),
    "date": ("seed: 2026-13-45", "is not YAML|seed must be a whole number"),
    "unknown": ("epoch: 3", "key epoch does not exist; did you mean epochs"),
    "unknown number": ("3: 4", "key 3 does not exist"),
    "unknown nested": ("objective: {bta: 1}", "key objective.bta does not exist; did you mean obj"),
    "text for number": ("epochs: many", "epochs must be a whole number, got 'many'"),
    "part": ("epochs: 1.5", "epochs must be a whole number, got 1.5"),
    "bool": ("epochs: true", "epochs must be a whole number, got True"),
    "number for text": ("data: 3", "data must be text, got 3"),
    "nothing": ("model: null", "model must be text, got None"),
    "list for dict": ("model_args: [1]", r"model_args must be \{name: value, ...\}, got \[1\]"),
    "number as key": ("model_args: {1: 2}", "model_args takes names for keys, got 1"),
    "dict for list": ("augment: {name: x}", r"augment must be a list of \{name: value, ...\}"),
    "augment of numbers": ("augment: [1]", "each entry of augment"),
    "text for bool": ("compile: perhaps", "compile must be true or false, got 'perhaps'"),
    "number for part": ("objective: 3", r"objective must be a ObjectiveConfig \(.*got 3"),
    "part of part": ("checkpoint: {keep: x}", "checkpoint.keep must be a whole number, got 'x'"),
    "huge": ("seed: 1" + "0" * 300, "seed can be at most 9223372036854775807"),
    "huge in hex": ("seed: 0x" + "f" * 5000, "seed can be at most"),
    "huge number for a float": ("lr: 1" + "0" * 4000, "lr can be at most"),
    "endless": ("lr: .inf", "lr must be above 0, got inf"),
    "class_path": ("objective: os.system", "objective must be a ObjectiveConfig"),
    "class_path too": ("objective: {class_path: os.system}", "objective.class_path does not exist"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs(workplace, capsys, case):
    content, words = CONFIGS[case]
    content = content if isinstance(content, bytes) else content.encode()
    (workplace / "bad.yaml").write_bytes(content)
    status = 1 if case == "endless" else 2
    error = said(capsys, "train", "--config", "bad.yaml", "--out", "run", status=status)
    assert re.search(words, error), error
    assert not (workplace / "run").exists() and not (workplace / "ran").exists()
    # The same file as a run's.
    (workplace / "run").mkdir()
    (workplace / "run" / "config.yaml").write_bytes(content)
    for command in ("resume", "sample"):
        error = said(capsys, command, "run")
        assert "run/config.yaml" in error or status == 1


def test_pipes_devices_and_folders_are_no_configs(workplace, capsys, run):
    os.mkfifo("pipe")
    for name, kind in (("pipe", "a pipe"), ("/dev/zero", "a device"), ("run", "a folder")):
        error = said(capsys, "train", "--config", name, "--out", "new", status=2)
        assert name in error and kind in error
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        (run / name).rename("kept")
        os.mkfifo(run / name)
        error = said(capsys, "resume", run, "--epochs", 2)
        assert "a pipe" in error or "no config.yaml" in error
        (run / name).unlink()
        os.rename("kept", run / name)


def test_flags_join_the_files_dicts_and_lists(workplace):
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    flip = {"name": "RandomHorizontalFlip", "args": {"p": 0.5}}
    changes = {"augment": [flip], "optimizer": {"args": {"weight_decay": 0.5, "eps": 1e-6}}}
    (workplace / "c.yaml").write_text(yaml.safe_dump(SMALL | changes))
    flags = ("--augment+", "{name: RandomVerticalFlip}", "--optimizer.args.eps=1e-5",
             "--model-args.latent_dim", "3")  # fmt: skip
    assert main(["train", "--config", "c.yaml", "--out", "a", *flags]) == 0
    config = RunFolder("a").config()
    assert config.augment == [flip, {"name": "RandomVerticalFlip"}]
    assert config.optimizer.args == {"weight_decay": 0.5, "eps": 1e-5}
    assert config.model_args == {"latent_dim": 3, "network_options": {"hidden": [8]}}
    flags = ("--augment", "[]", "--model_args", "{latent_dim: 4}", "--optimizer.args={}")
    assert main(["train", "--config", "c.yaml", "--out", "b", *flags]) == 0
    config = RunFolder("b").config()
    assert (config.augment, config.optimizer.args) == ([], {})
    assert config.model_args == {"latent_dim": 4}


def test_numbers_as_people_write_them_and_a_few_aliases_are_taken(workplace):
    (workplace / "c.yaml").write_text(
        yaml.safe_dump(SMALL) + "lr: 1e-3\nema: &e 5e-1\nobjective: {beta: *e, free_bits: 0}\n"
    )
    flags = ("--optimizer.args.weight_decay", "1e-4", "--model-args.network-options.norm=layer")
    assert main(["train", "--config", "c.yaml", "--out", "run", *flags]) == 0
    config = RunFolder("run").config()
    assert (config.lr, config.ema, config.objective.beta) == (1e-3, 0.5, 0.5)
    assert config.optimizer.args == {"weight_decay": 1e-4}
    assert config.model_args["network_options"] == {"hidden": [8], "norm": "layer"}
    with pytest.raises(TypeError, match="epochs must be a whole number, got '3'"):
        TrainConfig(epochs="3").check()
    with pytest.raises(TypeError, match="'lr'|lr must be a number"):
        from_dict({"lr": [1]})


SIZES = {
    "latent": (["--model-args.latent_dim", 10**9], "GiB of memory"),
    "hidden": (["--model-args.network_options.hidden", "[1000000, 1000000]"], "GiB of memory"),
    "overflow": (["--model-args.latent_dim", 10**18], "sizes that can't be|don't fit"),
    "blocks": (["--model-args.network", "resnet", "--model-args.network_options",
                "{blocks: 1000000000}"], "at most 1,000 are made"),
    "seed": (["--seed", 10**30], "seed can be at most"),
    "epochs": (["--epochs", 10**400], "epochs can be at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_impossible_sizes(workplace, capsys, case):
    flags, words = SIZES[case]
    error = said(capsys, "train", "--config", "small.yaml", *flags, "--out", "run")
    assert re.search(words, error), error
    assert not (workplace / "run").exists()


def test_bad_samples(run, capsys):
    assert "GiB of memory" in said(capsys, "sample", run, "--n", 10**12)
    assert said(capsys, "sample", run, "--n", 10**400, status=1)


METRICS = {
    "no json": ("{'epoch': 1}", "line 2, is not JSON"),
    "a list": ("[1, 2]", "line 2, is not a row"),
    "no split": ('{"epoch": 1}', "line 2, has split None; it must be train or val"),
    "no loss": ('{"split": "val", "epoch": 1, "step": 2}', "line 2, lacks loss"),
    "deep": ("[" * 100_000, "line 2, is not JSON"),
    "a word": (
        '{"split": "val", "epoch": 1, "step": 2, "loss": "low"}',
        "line 2, has loss 'low'; it must be a number",
    ),
}


@pytest.mark.parametrize("case", METRICS)
def test_bad_rows_of_metrics(run, capsys, case):
    row, words = METRICS[case]
    file = run / "metrics.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, row, *rest]) + "\n")
    error = said(capsys, "resume", run, "--epochs", 2)
    assert "run/metrics.jsonl" in error and words in error and "remove that line" in error


def test_a_truncated_row_is_left_out_and_a_whole_row_without_newline_is_kept(run):
    file, folder = run / "metrics.jsonl", RunFolder(run)
    rows = folder.metrics()
    file.write_text(file.read_text().rstrip("\n"))
    assert folder.metrics() == rows
    file.write_text(file.read_text()[:-5])
    assert folder.metrics() == rows[:-1]
    file.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl is not UTF-8"):
        folder.metrics()


@pytest.mark.parametrize("content", ["{", "3", "{}", "[" * 100_000, "null"])
def test_a_bad_environment(run, capsys, content):
    (run / "environment.json").write_text(content)
    error = said(capsys, "resume", run, "--epochs", 2)
    assert "run/environment.json must hold a list in JSON" in error and "move it away" in error
    assert (run / "environment.json").read_text() == content
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 1


def test_bad_compressed_files(run, capsys, monkeypatch):
    assert main(["compress", "run"]) == 0
    with np.load(run / "compressed.npz") as file:
        good = dict(file)
    symbols, n = good["symbols"], len(good["symbols"])

    def refused(words, **changes):
        arrays = {k: v for k, v in {**good, **changes}.items() if v is not None}
        np.savez("bad.npz", **arrays)
        error = said(capsys, "decompress", "run", "bad.npz", "--out", "x.npy")
        assert "bad.npz" in error and re.search(words, error), error
        assert not os.path.exists("x.npy")

    refused("it has no symbols", symbols=None)
    refused("it has no step", step=None)
    refused("symbols must be integers .* float32", symbols=symbols.astype("f4"))
    refused("symbols must be integers", symbols=symbols[0])
    refused("symbols must be integers", symbols=symbols[:0])
    refused("compressed with another model", symbols=symbols[:, :1])
    refused("symbols is not an array of numbers", symbols=symbols.astype(object))
    for step in (0.0, -1.0, np.nan, np.inf, np.ones(2), "0.25"):
        refused("step must be one number above 0", step=np.array(step))
    refused("labels must be integers of shape", labels=np.zeros(n + 1, int))
    refused("labels must be integers", labels=np.zeros(n))

    def damaged(content, words):
        with open("bad.npz", "wb") as file:
            file.write(content)
        assert re.search(words, said(capsys, "decompress", "run", "bad.npz", "--out", "x.npy"))

    whole = (run / "compressed.npz").read_bytes()
    damaged(b"", "not an .npz file, or it is damaged")
    damaged(whole[: len(whole) // 2], "not an .npz file")
    middle = len(whole) // 4
    damaged(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :], "bad.npz")
    monkeypatch.setattr("vae_fast.cli.compressed_file.MOST_BYTES", 100_000)
    # A header that claims more than there is, and a member of zeros that claims to be all memory.
    header = b"\x93NUMPY\x01\x00v\x00" + (
        b"{'descr': '<i2', 'fortran_order': False, 'shape': (4611686018427387904, 2), }"
    ).ljust(117) + b"\n"  # fmt: skip
    for data, words in (
        (header, "not an array of numbers .*shape"),
        (b"\0" * 100_001, "claims"),
    ):
        with zipfile.ZipFile("bad.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("symbols.npy", data)
        assert re.search(words, said(capsys, "decompress", "run", "bad.npz", "--out", "x.npy"))
    os.mkfifo("pipe")
    assert "a pipe" in said(capsys, "decompress", "run", "pipe", "--out", "x.npy")
    assert main(["decompress", "run", "run/compressed.npz", "--out", "x.npy"]) == 0


def test_bad_masks(run, capsys):
    np.save("mask.npy", np.zeros((3, 3), bool))
    command = ("inpaint", "run", "--n", "2", "--steps", "1", "--draws", "1", "--out", "x.npy")
    assert "does not broadcast" in said(capsys, *command, "--missing", "mask.npy")
    np.save("mask.npy", np.zeros((4, 4)))
    assert "mask.npy must be bool" in said(capsys, *command, "--missing", "mask.npy")
    os.mkfifo("pipe.npy")
    assert "a pipe" in said(capsys, *command, "--missing", "pipe.npy")
    # Any byte but 0 is true.
    mask = np.zeros((4, 4), np.uint8)
    mask[:, 2:] = 255
    np.save("mask.npy", mask.view(bool))
    assert main([*command, "--missing", "mask.npy"]) == 0
    found = np.load("x.npy")
    assert main([*command, "--missing", "right"]) == 0
    np.testing.assert_array_equal(found, np.load("x.npy"))
