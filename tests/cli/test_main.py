import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from tests.fresh import python
from vae_fast.cli import main
from vae_fast.cli.train import COMMON, PARTS
from vae_fast.train.config import TrainConfig, to_dict

SMALL = [
    "--data", "small.npy", "--epochs", "1", "--batch-size", "50", "--device", "cpu",
    "--model-args.latent_dim", "3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, request):
    """Draw nothing, unless the test's name has "picture": drawing takes longer than training."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with 300 random images in small.npy."""
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (300, 8, 8), dtype=np.uint8))
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def config_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_train_says_where_the_pictures_are_the_loss_and_the_speed(workplace, capsys):
    assert run("train", *SMALL, "--out", "out") == 0
    shown = capsys.readouterr().out
    for name in ("reconstructions.png", "samples.png", "curves.png"):
        assert f"out/{name}" in shown and (workplace / "out" / name).is_file()
    last = json.loads((workplace / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"Validation loss {last['loss']:.2f} nats per sample" in shown
    assert "samples per second" in shown


def test_flags_win_over_the_file_and_the_file_over_defaults(workplace):
    (workplace / "run.yaml").write_text(
        "lr: 0.01\nbatch_size: 30\nobjective:\n  beta: 2.0\nmodel_args:\n  latent_dim: 5\n"
        "data: small.npy\nepochs: 1\n"
    )
    assert run("train", "--config", "run.yaml", "--objective.beta", 4, "--batch-size=60",
               "--out", "out") == 0  # fmt: skip
    found = config_of(workplace / "out")
    assert found["lr"] == 0.01
    assert found["batch_size"] == 60
    assert found["objective"]["beta"] == 4.0
    assert found["model_args"] == {"latent_dim": 5}
    assert found["log_every"] == 50


def test_the_config_of_a_run_makes_the_same_run(workplace):
    assert run("train", *SMALL, "--out", "a") == 0
    assert run("train", "--config", "a/config.yaml", "--out", "b") == 0

    def losses(name):
        lines = (workplace / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses("a") == losses("b")


def test_sample_and_reconstruct_write_pictures_and_arrays(workplace, capsys):
    run("train", *SMALL, "--out", "out")
    assert run("sample", "out", "--n", 7, "--out", "s.npy", "--seed", 3) == 0
    assert run("sample", "out", "--n", 7, "--out", "again.npy", "--seed", 3) == 0
    assert run("sample", "out", "--n", 7, "--out", "other.npy", "--seed", 4) == 0
    s, again, other = (np.load(f"{name}.npy") for name in ("s", "again", "other"))
    assert s.shape == (7, 1, 8, 8) and 0 <= s.min() and s.max() <= 1
    assert (s == again).all() and not (s == other).all()
    assert run("sample", "out", "--n", 5, "--out", "s.png") == 0
    assert run("reconstruct", "out", "--n", 4, "--out", "r.png") == 0
    assert (workplace / "s.png").is_file() and (workplace / "r.png").is_file()
    assert run("reconstruct", "out", "--data", "small.npy", "--n", 4, "--out", "r.npy") == 0
    from vae_fast.tasks import load_model

    model = load_model("out", device="cpu").model
    images = torch.from_numpy(np.load("small.npy")[:4, None])
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(np.load("r.npy")), model.reconstruct(images))
    assert "r.png" in capsys.readouterr().out


def test_info_names_versions(capsys):
    assert run("info") == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown and "native cpu" in shown


def train_flags():
    """Every flag that a configuration's fields make."""
    fields = to_dict(TrainConfig())
    names = [
        f"{name}.{key}" if key else name
        for name, value in fields.items()
        for key in (value if name in PARTS else [""])
    ]
    return {"--" + name.replace("_", "-") for name in names if name != "data_options"}


def test_overview_and_help(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert "train" in shown and "reconstruct" in shown
    with pytest.raises(SystemExit) as leaving:
        run("train", "--help")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24  # a screen
    assert max(map(len, shown.splitlines())) <= 100
    assert "--batch-size N" in shown and "[128]" in shown
    every = train_flags()
    ours = {"--config", "--compare-reference", "--data.size"}
    assert {flag.split()[0].removesuffix(".KEY") for flag in COMMON} - ours <= every
    with pytest.raises(SystemExit) as leaving:
        run("train", "--help-all")
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "--batch-size" in shown and "--batch_size" not in shown
    assert all(flag in shown for flag in every)
    assert "--objective.beta" in shown and "weight of the KL term" in shown
    assert run("info", "--help") == 0
    assert "usage: vae-fast info" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["trian"], 2, "'trian' is not a command; the commands are train, "),
        (["train", "--batchsize", "3"], 2, "no flag --batchsize; did you mean --batch-size?"),
        (["train", "--objective.bta", "3"], 2, "--objective.bta; did you mean --objective.beta?"),
        (["train", "--lr", "fast"], 2, "--lr takes a value of type float, got fast"),
        (["train", "--config", "bad.yaml"], 2, "key learning does not exist"),
        (["train", "--config", "nested.yaml"], 2, "key objective.bta does not exist; did you mean"),
        (["train", "--config", "none.yaml"], 2, "none.yaml"),
        (["train", "--precision", "fp8"], 1, "precision 'fp8' is unknown: it is one of fp32, bf16"),
        (["train", "--model", "vea"], 1, "unknown model 'vea'; known: "),
        (["train", "--data", "fashion"], 1, "unknown data 'fashion'"),
        (["train", "--model-args.depth", "3"], 1, "depth"),
        (["train", "--model-args.latent_dim", "0"], 1, "latent_dim must be at least 1, got 0"),
        (["sample", "."], 1, "is not the folder of a run: it holds no config.yaml"),
        (["sample", "nowhere"], 1, "nowhere is not the folder of a run: it does not exist"),
        (["sample", ".", "--out", "x.jpg"], 2, "--out must end in .png"),
        (["sample", ".", "--n", "0"], 2, "--n must be at least 1"),
        (["info", "more"], 2, "it takes no arguments"),
    ],
)
def test_errors_are_one_sentence(workplace, capsys, arguments, status, message):
    (workplace / "bad.yaml").write_text("learning: 3\n")
    (workplace / "nested.yaml").write_text("objective:\n  bta: 3\n")
    assert run(*arguments) == status
    error = capsys.readouterr().err
    assert message in error and error.startswith("vae-fast") and "Traceback" not in error
    assert not (workplace / "runs").exists()


def test_reconstruct_refuses_other_shapes(workplace, capsys):
    run("train", *SMALL, "--out", "out")
    assert run("reconstruct", "out", "--data", "fashion10k") == 1
    error = capsys.readouterr().err
    assert "samples of shape (1, 28, 28), the model takes (1, 8, 8)" in error


@pytest.mark.parametrize("module", ["jsonargparse", "safetensors.torch", "matplotlib", "yaml"])
def test_a_missing_library_is_one_sentence_before_any_work(workplace, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert run("train", *SMALL, "--out", "out") == 1
    error = capsys.readouterr().err
    assert "which is not installed: pip install 'vae_fast[train]'" in error
    assert error.count("\n") == 1
    assert not (workplace / "out").exists()


def test_importing_the_engine_loads_no_command_line_library():
    code = (
        "import sys, vae_fast.train, vae_fast.cli\n"
        "for name in ('jsonargparse', 'matplotlib', 'yaml', 'safetensors', 'PIL'):\n"
        "    assert name not in sys.modules, name\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_program():
    done = python("import runpy; runpy.run_module('vae_fast', run_name='__main__')", "info")
    assert done.returncode == 0 and "torch" in done.stdout, done.stderr


def test_compare_reference_prints_the_loops_that_people_write_and_the_ratios(workplace, capsys):
    import vae_fast

    if vae_fast.info()["native cpu"] != "yes":
        pytest.skip("native kernels are not built")
    assert run("train", *SMALL, "--out", "out", "--compare-reference") == 0
    shown = capsys.readouterr().out
    for words in ("plain PyTorch, images in memory  ", "vae_fast (native steps)  ", " times plain"):
        assert words in shown


def test_resume_prints_the_step_at_which_it_continues(workplace, capsys):
    run("train", *SMALL, "--out", "out")
    assert run("resume", "out", "--epochs", 2) == 0
    assert "out continues at step 6 of 12" in capsys.readouterr().out
    lines = (workplace / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 2 and json.loads(lines[-1])["step"] == 12
    starts = json.loads((workplace / "out" / "environment.json").read_text())
    assert len(starts) == 2
    assert run("resume", "nowhere") == 1
    assert "nowhere is not the folder of a run" in capsys.readouterr().err


def test_evaluate_prints_the_report_of_the_model(workplace, capsys):
    from vae_fast.evaluate import evaluate
    from vae_fast.tasks import load_model

    run("train", *SMALL, "--out", "out")
    capsys.readouterr()
    assert run("evaluate", "out", "--data", "small.npy", "--n", 20, "--num-samples", 5) == 0
    shown = capsys.readouterr().out
    images = torch.from_numpy(np.load("small.npy")[:20, None])
    report = evaluate(load_model("out", device="cpu").model, images, num_samples=5)
    for key in ("elbo", "nll", "kl"):
        assert any(
            line.split()[0] == key and line.split()[1] == f"{report[key]:.4f}"
            for line in shown.splitlines()[1:]
        ), key


def test_evaluate_takes_labels_if_there_are_some(workplace, capsys):
    from vae_fast.evaluate import anomaly_auroc
    from vae_fast.tasks import load_model

    run("train", *SMALL, "--out", "out")
    images, labels = np.load("small.npy")[:60], np.arange(60) % 3
    np.savez("labelled.npz", images=images, labels=labels)
    options = ("--num-samples", 0, "--n", 60, "--normal", 0, 2)
    capsys.readouterr()
    assert run("evaluate", "out", "--data", "labelled.npz", *options) == 0
    lines = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:])
    model = load_model("out", device="cpu").model
    x, y = torch.from_numpy(images[:, None]), torch.from_numpy(labels)
    by_hand = anomaly_auroc(model, x, y, [0, 2])["reconstruction"]
    assert float(lines["auroc_reconstruction"]) == pytest.approx(by_hand, abs=1e-4)
    assert run("evaluate", "out", "--data", "small.npy", *options) == 1
    assert "need labels, and these data have none" in capsys.readouterr().err


def test_a_warning_is_one_line_without_code():
    done = python(
        "import sys, warnings\n"
        "from vae_fast.cli import commands, script\n"
        "commands.COMMANDS['info'] = lambda *_: warnings.warn('photos: 1 image used') or 0\n"
        "sys.argv = ['vae-fast', 'info']\n"
        "sys.exit(script())\n"
    )
    assert done.returncode == 0
    assert done.stderr == "vae-fast: warning: photos: 1 image used\n"


def test_pack_writes_shards_that_train_takes(workplace, capsys):
    assert run("pack", "small.npy", "shards", "--workers", 0, "--shard-bytes", 5000) == 0
    assert "300 samples of 1x8x8 in shards, 0 MB" in capsys.readouterr().out
    assert run("train", "--data", "shards", *SMALL[2:], "--out", "out") == 0
    assert config_of(workplace / "out")["data"] == "shards"


def test_a_vq_vae_is_trained_evaluated_and_sampled(workplace, capsys):
    quantizer = ["--model-args.quantizer", "fsq", "--model-args.network_options.channels", "4"]
    shared = ["--model-args.network_options.multipliers", "[1,2]", "--model", "vq-vae"]
    assert run("train", *SMALL[:-2], *shared, *quantizer, "--out", "out") == 0
    assert run("evaluate", "out") == 0
    report = json.loads((workplace / "out" / "evaluation.json").read_text())
    assert 1 < report["code_perplexity"] <= 1000 and 0 < report["codes_used"] <= 1
    last = json.loads((workplace / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["code_perplexity"] > 1
    assert run("sample", "out", "--n", 7, "--out", "s.npy") == 0
    assert np.load("s.npy").shape == (7, 1, 8, 8)


def test_one_of_several_processes_ends_without_the_teardown(monkeypatch):
    """torch's threads abort it there; exit functions, output and status are as ever."""
    script = (
        "import atexit, sys\n"
        "from vae_fast.cli import script\n"
        "class Late:\n"
        "    def __del__(self):\n"
        "        print('torn down', flush=True)\n"
        "late = Late()\n"
        "atexit.register(print, 'exit function')\n"
        "sys.argv = ['vae-fast', 'no-such-command']\n"
        "raise SystemExit(script())\n"
    )
    for size, torn_down in ("1", True), ("2", False):
        monkeypatch.setenv("WORLD_SIZE", size)
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert result.returncode == 2
        assert "no-such-command" in result.stderr
        assert "exit function" in result.stdout
        assert ("torn down" in result.stdout) is torn_down
