"""The command line outside its commands' work: help, usage errors, Ctrl-C, failed starts."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from vae_fast.cli import flags, interrupts, main
from vae_fast.cli.commands import COMMANDS
from vae_fast.train import RunFolder, TrainConfig, Trainer

PROGRAM = [sys.executable, "-m", "vae_fast"]
SMALL = {
    "model_args": {"latent_dim": 2, "network_options": {"hidden": [8]}}, "data": "small.npy",
    "epochs": 1, "batch_size": 20, "device": "cpu", "tensorboard": "off",
}  # fmt: skip


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (41, 4, 4), dtype=np.uint8))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def said(capsys, *arguments, status=1):
    """The line that a failing command prints."""
    assert main([str(argument) for argument in arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("vae-fast ") and error.count("\n") == 1, error
    return error


# --- without torch -------------------------------------------------------------------------------


def test_help_and_mistakes_need_no_torch(workplace):
    """They take less than a second. Importing torch would take most of that: none may import it."""
    for arguments, status in [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["sample", "--help"], 0),
        (["train", "--batchsize", "3"], 2),
        (["train", "--conf", "none.yaml"], 2),
        (["train", "--objective", "none.yaml"], 2),
        (["train", "--lr", "fast"], 2),
        (["train", "--precision", "fp8"], 1),
        (["train", "--config", "none.yaml"], 2),
        (["sample", "run", "--n", "0"], 2),
        (["traverse", "run", "--steps", "0"], 2),
        (["inpaint", "run", "--missing", "middle"], 2),
    ]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "vae_fast", *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == status, (arguments, done.stderr[-300:])
        assert not loaded & {"torch", "numpy"}, arguments


def test_an_import_of_torch_that_takes_long_is_told(monkeypatch, capsys):
    monkeypatch.setattr("vae_fast._load", lambda: time.sleep(0.2))
    for patience, told in ((0.0, True), (60.0, False)):
        monkeypatch.setattr(flags, "SILENT", patience)
        flags.load_package()
        assert ("loading PyTorch" in capsys.readouterr().err) == told


def test_the_package_is_complete_in_the_program_and_outside():
    """After the deferred import, names and ops are those of a plain import."""
    code = (
        "import sys; sys.argv = ['/bin/vae-fast']; sys.orig_argv.append('/bin/vae-fast')\n"
        "import vae_fast; assert 'torch' not in sys.modules\n"
        "from vae_fast.cli import main; assert main(['info']) == 0\n"
        "import torch, vae_fast.public as public\n"
        "assert all(getattr(vae_fast, n) is getattr(public, n) for n in public.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    import vae_fast

    assert all(hasattr(vae_fast, name) for name in vae_fast.__all__)


def test_threads_of_openmp_spin_shortly_unless_the_user_says_otherwise():
    """It is set before torch, which reads it on import, and only in the program's own process."""
    code = "import sys, os; {}import vae_fast; print(os.environ.get('GOMP_SPINCOUNT'))"
    program = "sys.argv = ['/bin/vae-fast']; sys.orig_argv.append('/bin/vae-fast'); "
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for before, given, found in (
        (program, {}, "5000"),
        (program, {"GOMP_SPINCOUNT": "7"}, "7"),
        (program, {"OMP_WAIT_POLICY": "active"}, "None"),
        ("", {}, "None"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(before)],
            env={**own, **given}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [found]


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.7, 2.5])
def test_ctrl_c_shows_no_traceback(workplace, after):
    """At the start, in the midst of imports, and at work."""
    code = (
        # A shell's background job ignores Ctrl-C, and its children would inherit that.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vae_fast.cli import script\n"
        "sys.argv[0] = '/bin/vae-fast'; print('up', flush=True); sys.exit(script())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.argv[0] = '-m'; sys.orig_argv.append('vae_fast')\n"
         + code, "train", "--config", "small.yaml", "--epochs", "100000", "--out", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "up\n"
    time.sleep(after + 0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert "Traceback" not in shown and "Exception ignored" not in shown, shown
    assert process.returncode == 130, shown
    assert "interrupted" in shown or "stopped by SIGINT" in shown, shown


def test_ctrl_c_during_a_late_import_is_an_interrupt(capsys, monkeypatch):
    """A C++ library whose import is cut short raises an ImportError, "initialization failed"."""

    def command(arguments, program):
        interrupts.begin_work()
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(interrupts, "came", False)
    monkeypatch.setattr(interrupts, "_leave", None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setitem(COMMANDS, "train", command)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.quiet(lambda: 0):
            assert main(["train"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "vae-fast train: error: interrupted\n"


# --- what a user is shown ------------------------------------------------------------------------


def test_a_traceback_is_shown_where_it_is_asked_for(workplace, capsys, monkeypatch):
    def fail(*_):
        raise KeyError("lost")

    monkeypatch.setattr("vae_fast.train.trainer.load_data", fail)
    error = said(capsys, "train", "--config", "small.yaml", "--out", "run")
    assert "KeyError: 'lost'" in error and "--traceback" in error
    assert main(["train", "--config", "small.yaml", "--traceback"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and "in fail" in error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory"),
        (RuntimeError("first\nsecond\nException raised from f at x.cpp:1 (most recent call first):"),
         "first second"),
        (ValueError("Caught\nTraceback (most recent call last):\n  File x\nValueError: bad"),
         "ValueError: bad"),
        (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded"),
        (ValueError(), "ValueError (unexpected"),
        (OverflowError("int too large"), "OverflowError: int too large"),
    ],
)  # fmt: skip
def test_every_error_is_one_line(workplace, capsys, monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr("vae_fast.train.trainer.load_data", fail)
    shown = said(capsys, "train", "--config", "small.yaml")
    assert words in shown and "x.cpp" not in shown and "File x" not in shown


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number from 1 .* and is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be .* and is '0'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be .* and is '-2'"),
        ({"WORLD_SIZE": "9" * 400}, "WORLD_SIZE must be .* and is '999"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', and RANK is not set: .* torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be a whole number from 0 to 1, and is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK must be"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "http"}, "MASTER_PORT must be"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
    ],
)
def test_bad_variables_of_torchrun(workplace, capsys, monkeypatch, variables, words):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    import re

    assert re.search(words, said(capsys, "train", "--config", "small.yaml", "--out", "run"))
    assert not (workplace / "run").exists()


# --- starts that fail ----------------------------------------------------------------------------


def test_a_start_that_fails_leaves_no_run(workplace, capsys, monkeypatch):
    """After a failure at any point, the corrected command does not find an existing run."""
    (workplace / "run").mkdir()
    (workplace / "run" / "notes.txt").write_text("mine")
    for place in ("RunFolder.record_environment", "Trainer.open_displays", "Step.__call__"):
        module = {"R": "run_folder", "T": "trainer", "S": "step"}[place[0]]
        with monkeypatch.context() as broken:

            def fail(*_, **__):
                raise OSError(28, "No space left", "somewhere")

            broken.setattr(f"vae_fast.train.{module}.{place}", fail)
            assert "No space left" in said(
                capsys, "train", "--config", "small.yaml", "--out", "run"
            )
            assert [path.name for path in (workplace / "run").iterdir()] == ["notes.txt"], place
    assert main(["train", "--config", "small.yaml", "--out", "run"]) == 0
    assert "already holds a run" in said(capsys, "train", "--config", "small.yaml", "--out", "run")


def test_a_run_that_fails_later_is_kept(workplace, monkeypatch):
    trainer = Trainer(TrainConfig(**SMALL, out="run", log_every=1))
    take = type(trainer.step).__call__

    def fail(self, share, number):
        if number == 1:
            raise RuntimeError("in the second step")
        take(self, share, number)

    monkeypatch.setattr(type(trainer.step), "__call__", fail)
    with pytest.raises(RuntimeError, match="second step"):
        trainer.fit()
    assert len(RunFolder("run").metrics()) == 1


LABELS = {
    "too many": (np.arange(40) % 12, "label 11, .* takes 0 to 9: .*options.num_classes 12"),
    "negative": (np.arange(40) % 10 - 1, "label -1, .* mend the data; -1, .* --model ssvae"),
    "very negative": (np.where(np.arange(40) == 7, -5, 3), "label -5"),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("packed", [False, True])
def test_labels_out_of_range_are_seen_before_there_is_a_folder(workplace, capsys, case, packed):
    import re

    labels, words = LABELS[case]
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez("labelled.npz", images=images, labels=labels)
    data = "labelled.npz"
    if packed:
        assert main(["pack", data, "shards", "--workers", "0"]) == 0
        data = "shards"
    arguments = ("train", "--config", "small.yaml", "--model", "cvae", "--data", data)
    error = said(capsys, *arguments, "--out", "run")
    assert re.search(words, error), error
    assert not (workplace / "run").exists()
    if case == "very negative" and not packed:
        assert "label -5" in said(capsys, *arguments, "--model", "ssvae", "--out", "run")
    if case == "too many" and not packed:
        more = ("--model-args.condition_options.num_classes", "12", "--out", "run")
        assert main([*arguments, *more]) == 0


def test_negative_labels_given_to_a_model_are_refused():
    from vae_fast.models import build

    model = build("cvae", (1, 4, 4), latent_dim=2)
    x = torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match="label -2 is out of range"):
        model.loss(x, torch.tensor([0, -2, 1]))


def test_batch_norm_and_a_batch_of_one_are_seen_at_the_start(workplace, capsys):
    norm = ("--model-args.network_options.norm", "batch", "--out", "run")
    arguments = ("train", "--config", "small.yaml")
    # 41 samples, of which 37 are for training: batches of 12 leave one.
    for model in ("vae", "aae"):
        error = said(capsys, *arguments, "--model", model, "--batch-size", "12", *norm)
        assert "37 samples in batches of 12 leave a batch of one" in error
        assert "--batch-size 11" in error or "--batch-size 13" in error
        assert not (workplace / "run").exists()
    assert "batch of one" in said(capsys, *arguments, "--batch-size", "1", *norm)
    assert main([*arguments, "--batch-size", "12", "--out", "plain"]) == 0  # has no batch norm
    assert main([*arguments, "--batch-size", "13", *norm]) == 0
    # Batch norm over maps needs only one sample. The check leaves model and generator unchanged.
    config = TrainConfig(
        **SMALL | {"model_args": {"latent_dim": 2, "network": "conv",
                                  "network_options": {"norm": "batch", "channels": [4]}}},
        out="conv",
    )  # fmt: skip
    config.batch_size = 12
    torch.manual_seed(0)
    trainer = Trainer(config)
    assert all(int(b) == 0 for n, b in trainer.model.named_buffers() if n.endswith("tracked"))


@pytest.mark.parametrize("device", ["mps", "meta", "xpu", "cuda:-1", "cpu:x", "tpu"])
def test_other_devices_are_refused(workplace, capsys, device):
    error = said(capsys, "train", "--config", "small.yaml", "--device", device, "--out", "run")
    assert device in error and "use auto, cpu, cuda or cuda:N" in error
    assert not (workplace / "run").exists()


def test_bf16_without_instructions_is_refused_unless_insisted_on(workplace, capsys, monkeypatch):
    found = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    arguments = ("train", "--config", "small.yaml", "--out", "run", "--precision")
    error = said(capsys, *arguments, "bf16")
    assert "CPU has no instructions for it" in error and "--precision fp32" in error
    assert "fp16 needs a GPU" in said(capsys, *arguments, "fp16")
    assert not (workplace / "run").exists()
    assert main([*arguments, "bf16", "--emulate-bf16", "true"]) == 0
    found["amx_bf16"] = True
    TrainConfig(precision="bf16", device="cpu").check()
