"""Runs of earlier versions, whose convolutional decoders had another default."""

import json

import pytest
import torch
import yaml

from vae_fast import hub, models, tasks
from vae_fast.data import load
from vae_fast.train import TrainConfig, Trainer, earlier, manifest

CONV = {"network": "conv", "network_options": {"channels": [4], "hidden": 8}}


def trained(out, **model_args):
    data = load(torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8))
    config = TrainConfig(model_args=model_args, epochs=1, batch_size=20, out=str(out))
    config.device, config.tensorboard = "cpu", "off"
    Trainer(config, train_data=data, val_data=data).fit()
    return data


def kinds(model):
    return [type(part).__name__ for part in model.modules()]


@pytest.mark.parametrize("decoder", [{}, {"decoder_network": "conv", "network": "mlp"}])
def test_a_run_without_the_option_has_transposed_convolutions(tmp_path, monkeypatch, decoder):
    monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])
    args = {**CONV, **decoder}
    key = "network_options"
    if decoder:
        args, key = {**decoder, "decoder_options": CONV["network_options"]}, "decoder_options"
    trained(tmp_path / "new", **args)
    written = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())["model_args"]
    assert written[key]["upsampling"] == "resize" and written[key]["channels"] == [4]
    assert "Resize" in kinds(tasks.load_model(tmp_path / "new", device="cpu").model)

    run = tmp_path / "before"
    data = trained(run, **{**args, key: {**CONV["network_options"], "upsampling": "transposed"}})
    before = tasks.load_model(run, device="cpu").model
    config = run / "config.yaml"  # both files as they were written before
    config.write_text(config.read_text().replace("    upsampling: transposed\n", ""))
    assert "upsampling" not in config.read_text()
    for path in run.rglob("state.json"):
        content = json.loads(path.read_text())
        del content["state"]["config"]["model_args"][key]["upsampling"], content["checksum"]
        content["checksum"] = manifest._checksum(content)
        path.write_text(json.dumps(content))
    after = tasks.load_model(run, device="cpu").model
    assert "ConvTranspose2d" in kinds(after)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(after.reconstruct(x), before.reconstruct(x))
    on = Trainer.resume(run, epochs=2, train_data=data, val_data=data)
    on.fit()
    assert on.progress.step == 4

    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder = tmp_path / "hub"
    hub.pretrained(run).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"][key].pop("upsampling") == "transposed"
    (folder / "config.json").write_text(json.dumps(config))
    again = hub.pretrained_class().from_pretrained(folder)
    best = tasks.load_model(run, device="cpu").model
    assert torch.equal(again.reconstruct(x), best.reconstruct(x))
    fresh = hub.pretrained_class()("vae", (1, 8, 8), args)
    fresh.save_pretrained(folder)
    assert torch.equal(
        hub.pretrained_class().from_pretrained(folder).reconstruct(x), fresh.eval().reconstruct(x)
    )


def test_a_run_without_channels_has_two_stages():
    """The default was (32, 64) for images of all sizes; a new run's follows its images."""
    for args, key in (
        ({"network": "conv"}, "network_options"),
        ({"network": "mlp", "decoder_network": "conv"}, "decoder_options"),
        ({"network": "conv", "decoder_options": {}}, "decoder_options"),
    ):
        before, now = earlier.of_saved("vae", args), earlier.written_out("vae", args)
        assert before[key] == {"upsampling": "transposed", "channels": [32, 64]}
        assert now[key] == {"upsampling": "resize", "channels": None}
        assert earlier.of_saved("vae", now) == now
        sizes = [
            sum(isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) for m in
                models.build("vae", (1, 40, 40), **given).decoder.modules())
            for given in (args, now, before)
        ]  # fmt: skip
        assert sizes == [3, 3, 2]
    resnet = {"network": "resnet", "network_options": {"blocks": 0}}
    assert earlier.written_out("vae", resnet)["network_options"] == {
        "blocks": 0,
        "upsampling": "resize",
    }
