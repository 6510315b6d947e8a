"""Exported models (folders, programs, ONNX files) give the same results."""

import json

import pytest
import torch

from vae_fast import hub, models
from vae_fast.cli import main
from vae_fast.data import load
from vae_fast.hub.pretrained import card_of
from vae_fast.tasks import load_model
from vae_fast.train import TrainConfig, Trainer

ONNX = pytest.mark.skipif(
    not all(__import__("importlib.util").util.find_spec(m) for m in ("onnxruntime", "onnxscript")),
    reason="needs onnxruntime and onnxscript: pip install onnxruntime onnxscript",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "vae"
    data = load(torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8))
    config = TrainConfig(
        model="vae", model_args={"latent_dim": 3, "network_options": {"hidden": [16]}},
        epochs=1, batch_size=32, out=str(path), device="cpu", tensorboard="off",
    )  # fmt: skip
    Trainer(config, train_data=data, val_data=data).fit()
    return path


def test_a_folder_that_hugging_face_knows(run, tmp_path, capsys):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    out = tmp_path / "model"
    assert main(["export", str(run), "--format", "pretrained", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} >= {"model.safetensors", "config.json", "README.md"}
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == "vae"
    assert config["input_shape"] == [1, 8, 8]
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vae_fast\n")
    assert "| step | 2 |" in card
    made = hub.pretrained_class().from_pretrained(out)
    expected = load_model(run, "best", "cpu").model
    x = torch.rand(4, 1, 8, 8)
    assert not made.training
    for a, b in zip(made.encode(x), expected.encode(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(made.decode(torch.ones(2, 3)), expected.decode(torch.ones(2, 3)))
    assert made.latent_dim == 3
    again = tmp_path / "again"
    made.save_pretrained(again)
    assert json.loads((again / "config.json").read_text()) == config


def test_push_and_pull_by_a_hub_on_this_machine(run, tmp_path, capsys, monkeypatch):
    """The uploaded files, the repository and the token; the downloaded model equals the run's."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from safetensors.torch import load

    from tests.hub.endpoint import hub as local_hub

    with local_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template[1] + template[2]
        )
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        command = ["export", str(run), "--format", "pretrained", "--push", "me/digits"]
        assert main([*command, "--out", str(tmp_path / "out")]) == 0
        assert f"{server.url}/me/digits/commit/" in capsys.readouterr().out
        assert server.created == [("me/digits", False)]
        assert server.messages == ["Push model using huggingface_hub."]
        tokens = {token for _, path, token in server.requests if "me/digits" in path}
        assert tokens == {"Bearer hf_of_nobody"}
        files = server.files["me/digits"]
        assert files.keys() - {".gitattributes"} == {
            "README.md",
            "config.json",
            "model.safetensors",
        }
        for name in ("README.md", "config.json", "model.safetensors"):
            assert files[name] == (tmp_path / "out" / name).read_bytes(), name
        expected = load_model(run, "best", "cpu").model
        weights = load(files["model.safetensors"])
        for name, value in expected.state_dict().items():
            assert torch.equal(weights[f"model.{name}"], value), name
        config = json.loads(files["config.json"])
        assert (config["model"], config["input_shape"]) == ("vae", [1, 8, 8])
        assert config["model_args"]["latent_dim"] == 3
        card = files["README.md"].decode()
        for fact in ("| epochs | 1 |", "| step | 2 |", "| batch size | 32 |", "| seed | 0 |"):
            assert fact in card
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        loss = next(row["loss"] for row in rows if row["split"] == "val")
        assert f"| validation loss | {loss:.4f} |" in card

        made = hub.pretrained_class().from_pretrained("me/digits", cache_dir=tmp_path / "cache")
        x = torch.rand(4, 1, 8, 8)
        assert all(map(torch.equal, made.encode(x), expected.encode(x)))

        hub.pretrained(run).push_to_hub(
            "us/more", private=True, commit_message="Two steps", token="hf_of_us"
        )
        assert server.created[-1] == ("us/more", True)
        assert server.messages[-1] == "Two steps"
        assert server.requests[-1][2] == "Bearer hf_of_us"
        assert server.files["us/more"]["model.safetensors"] == files["model.safetensors"]

        # A hub that refuses says why, and the command fails with that.
        monkeypatch.setattr(constants, "ENDPOINT", server.url + "/nowhere")
        assert main([*command, "--out", str(tmp_path / "again")]) != 0


def test_a_folder_that_names_code_of_others_is_not_followed(run, tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    hub.pretrained(run).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"model": "os.path:join"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was read from a file, and importing it runs"):
        hub.pretrained_class().from_pretrained(tmp_path)


def test_a_card_without_a_run():
    card = card_of({"model": "vae", "input_shape": [1, 2, 2]})
    assert "samples of shape (1, 2, 2)" in card


def parts_of(model, *condition):
    """Inputs of another batch size than the example's, and what the model makes of them."""
    torch.manual_seed(1)
    x, z = torch.rand(5, *model.input_shape), torch.randn(5, model.latent_dim)
    made = model.likelihood.mean(model.decode(z, *condition))
    return {
        "encoder": ((x, *condition), tuple(model.encode(x, *condition))),
        "decoder": ((z, *condition), (made,)),
        "sampler": ((z, *condition), (made,)),
    }


MODELS = {
    "vae": ((1, 8, 8), {"latent_dim": 3}),
    "conv": ((1, 8, 8), {"latent_dim": 3, "network": "conv"}),
    "cvae": ((1, 8, 8), {"latent_dim": 3}),
    "autoencoder-kl": (
        (3, 8, 8),
        {"channels": 8, "multipliers": [1, 2], "groups": 4, "z_channels": 2},
    ),
}


def model_of(name):
    shape, options = MODELS[name]
    model = models.build("vae" if name == "conv" else name, shape, **options).eval()
    condition = (torch.tensor([0, 1, 2, 3, 0]),) if name == "cvae" else ()
    return model, parts_of(model, *condition)


@pytest.mark.parametrize("name", MODELS)
def test_programs_of_torch_export(name, tmp_path):
    model, expected = model_of(name)
    written = hub.export(model, tmp_path, "torch")
    assert [p.name for p in written] == ["encoder.pt2", "decoder.pt2", "sampler.pt2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    for path in written:
        inputs, outputs = expected[path.stem]
        found = torch.export.load(path).module()(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        for a, b in zip(found, outputs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@ONNX
@pytest.mark.slow  # torch's ONNX exporter takes some ten seconds for each
@pytest.mark.parametrize("name", [*MODELS])
def test_onnx_under_onnxruntime(name, tmp_path):
    import onnxruntime

    model, expected = model_of(name)
    for path in hub.export(model, tmp_path, "onnx"):
        inputs, outputs = expected[path.stem]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        assert names[0] == {"encoder": "x", "decoder": "z", "sampler": "noise"}[path.stem]
        found = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
        for a, b in zip(found, outputs, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)


def test_the_command(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "e")]) == 0
    assert (tmp_path / "e" / "decoder.pt2").is_file()
    assert main(["export", str(run), "--push", "me/it"]) == 2
    assert "add --format pretrained" in capsys.readouterr().err


def test_models_without_one_z_say_so(tmp_path):
    model = models.build("vq-vae", (3, 16, 16))
    with pytest.raises(ValueError, match="can't be exported: encoder and decoder have to pass one"):
        hub.export(model, tmp_path)
    vamp = models.build("vamp-vae", (1, 8, 8), latent_dim=2).eval()
    assert [p.stem for p in hub.export(vamp, tmp_path)] == ["encoder", "decoder"]
    with pytest.raises(ValueError, match="format must be one of torch, onnx"):
        hub.export(vamp, tmp_path, "tf")
