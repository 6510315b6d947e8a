"""Import paths in files are code: what a run folder or a config of a stranger's may lead to."""

import sys
import types

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from vae_fast.cli import main
from vae_fast.import_paths import FromFile, imported
from vae_fast.models import build
from vae_fast.tasks import load_model
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import from_dict, to_dict

EVIL = """
import pathlib, torch
from vae_fast.models import AE, BetaVAE
pathlib.Path("ran").touch()
class Model(BetaVAE):
    def __new__(cls, **options):
        from vae_fast.models import build
        return build("vae", (1, 4, 4), latent_dim=2, network_options={"hidden": [8]})
class Optimizer(torch.optim.SGD): pass
class Augment(torch.nn.Identity): pass
def function(**options): pathlib.Path("ran").touch()
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder with data, and evil_code.py on the path, which leaves a file where it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_code", raising=False)
    (tmp_path / "evil_code.py").write_text(EVIL)
    np.save("small.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
    yield tmp_path
    sys.modules.pop("evil_code", None)


SMALL = {
    "model_args": {"latent_dim": 2, "network_options": {"hidden": [8]}}, "data": "small.npy",
    "epochs": 1, "batch_size": 20, "device": "cpu", "tensorboard": "off",
}  # fmt: skip
PARTS = {
    "model": ({"model": "evil_code:Model"}, "evil_code:Model"),
    "optimizer": ({"optimizer": {"name": "evil_code:Optimizer"}}, "evil_code:Optimizer"),
    "augment": ({"augment": [{"name": "evil_code:Augment"}]}, "evil_code:Augment"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_path_in_a_config_is_not_imported(stranger, capsys, part):
    changes, path = PARTS[part]
    (stranger / "c.yaml").write_text(yaml.safe_dump(SMALL | changes))
    assert main(["train", "--config", "c.yaml", "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert path in error and "--trust" in error and "Traceback" not in error
    assert not (stranger / "ran").exists() and not (stranger / "run").exists()
    with pytest.raises(ValueError, match="was read from a file"):
        Trainer(from_dict({**SMALL, **changes, "out": "run"}))
    assert not (stranger / "ran").exists()


def test_class_paths_of_the_flags_library_are_data_in_a_config(stranger, capsys):
    """jsonargparse imports what stands under class_path: it is not shown a file's dicts."""
    path = {"class_path": "evil_code.function", "init_args": {}}
    for changes in (
        {"model_args": {"latent_dim": path}},
        {"model_args": path},
        {"optimizer": {"args": path}},
        {"augment": [{"name": "RandomCrop", "args": path}]},
        {"augment": [path]},
        {"objective": path},
        {"objective": {"beta": path}},
        {"model": path},
        {"model": "evil_code.Model"},
    ):
        (stranger / "c.yaml").write_text(yaml.safe_dump(SMALL | changes))
        for flags in ([], ["--model-args.hidden", "1", "--optimizer.args.a", "2"]):
            assert main(["train", "--config", "c.yaml", "--out", "run", *flags]) != 0, changes
            assert not (stranger / "ran").exists(), changes
    assert "Traceback" not in capsys.readouterr().err


def test_naming_the_path_or_trusting_the_file_follows_it(stranger, capsys, monkeypatch):
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    changes = PARTS["optimizer"][0] | PARTS["augment"][0]
    (stranger / "c.yaml").write_text(yaml.safe_dump(SMALL | changes))
    named = ["--optimizer.name", "evil_code:Optimizer"]
    assert main(["train", "--config", "c.yaml", "--out", "a", *named]) == 1
    assert "evil_code:Augment" in capsys.readouterr().err  # the other one is not named
    assert main(["train", "--config=c.yaml", "--out", "a", "--trust"]) == 0
    assert (stranger / "ran").exists()
    # What the run has written is a file as well.
    assert main(["resume", "a", "--epochs", "2"]) == 1
    assert "evil_code:" in capsys.readouterr().err
    assert main(["resume", "a", "--epochs", "2", "--trust"]) == 0
    assert Trainer.resume("a", epochs=3, trust={"evil_code:Optimizer", "evil_code:Augment"})
    config = TrainConfig(**SMALL | {"model": "evil_code:Model", "model_args": {}, "out": "b"})
    Trainer(config).fit()  # named in Python
    for command in ("sample", "reconstruct", "evaluate"):
        assert main([command, "b", "--n", "2"]) == 1
        assert "evil_code:Model" in capsys.readouterr().err
    assert main(["sample", "b", "--n", "2", "--out", "x.npy", "--trust"]) == 0
    with pytest.raises(ValueError, match="trust=True"):
        load_model("b", device="cpu")
    assert load_model("b", device="cpu", trust=True).step == 2


@pytest.mark.parametrize(
    "path",
    [
        "os:system", "subprocess:Popen", "torch:load", "torch:os", "torch.os:system",
        "torch.hub:load", "torch.serialization.os:system", "torch.serialization:os",
        "torch.utils.data:DataLoader", "torch.optim:Optimizer.__init__", "torch:nn.Linear",
        "torch.nn:Linear", "torchevil:Model", "torch.testing._internal.common_utils:TestCase",
        "vae_fast.train.trainer:Path", "vae_fast.cli:main", ".torch:load", "torch.optim:Adam:x",
        "torch.optim : SGD", ":os", "torch.optim:", "", "torch.nn:SGD", "torch.optim:Missing",
    ],
)  # fmt: skip
def test_other_objects_are_refused_before_they_are_called(path, monkeypatch):
    """If the path is from a file. Most are refused if they are given in Python, too."""
    called = []
    monkeypatch.setattr("os.system", called.append)
    kinds = [(torch.optim.Optimizer, FromFile(path))]
    if path not in ("torch.testing._internal.common_utils:TestCase",):
        kinds.append((torch.optim.Optimizer, path))
    for kind, name in kinds:
        with pytest.raises(ValueError) as error:
            imported(name, "optimizer.name", kind, "a subclass of torch.optim.Optimizer")
        assert repr(path) in str(error.value)
    assert called == []


def test_a_class_of_others_within_torch_is_refused(monkeypatch):
    """The class's own module counts, beside the path that leads to it."""
    foreign = type("Foreign", (nn.Module,), {"__module__": "evil_code"})
    monkeypatch.setattr(torch.nn, "Foreign", foreign, raising=False)
    monkeypatch.setitem(sys.modules, "torch.borrowed", types.SimpleNamespace(Foreign=foreign))
    for path in ("torch.nn:Foreign", "torch.borrowed:Foreign"):
        with pytest.raises(ValueError, match="a class of evil_code"):
            imported(FromFile(path), "the model", nn.Module, "a subclass of nn.Module")
        assert imported(path, "the model", nn.Module, "a subclass of nn.Module") is foreign


def test_own_classes_are_taken_from_files():
    for path, kind in [
        ("torch.optim:SGD", torch.optim.Optimizer),
        ("vae_fast.models.vae:BetaVAE", nn.Module),
        ("vae_fast.models:BetaVAE", nn.Module),
    ]:
        assert issubclass(imported(FromFile(path), "it", kind, "it"), kind)
    with pytest.raises(ValueError, match="must lead to a subclass of nn.Module"):
        build("os:system", (4,))


def test_names_from_files_stay_marked_and_are_written_as_text():
    config = from_dict({"model": "a:B", "augment": [{"name": "c:D", "args": {}}]})
    assert all(type(of) is FromFile for of in (config.model, config.augment[0]["name"]))
    written = to_dict(config)
    assert type(written["model"]) is str and type(written["augment"][0]["name"]) is str
    assert yaml.safe_load(yaml.safe_dump(written)) == written
    trusted = from_dict(written, trust={"c:D"})
    assert type(trusted.model) is FromFile and type(trusted.augment[0]["name"]) is str
