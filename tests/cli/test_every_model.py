"""Every model, objective, posterior, prior and quantiser by the commands: trained on fashion10k,
resumed to the same bits, evaluated, sampled."""

import json

import numpy as np
import pytest
import torch

from vae_fast.cli import main
from vae_fast.models import MODELS, QUANTIZERS
from vae_fast.models.objectives import OBJECTIVE_NAMES
from vae_fast.models.posteriors import POSTERIORS
from vae_fast.models.priors import PRIORS
from vae_fast.train import checkpoint
from vae_fast.train.step import Step

STEPS, KILLED_AT = 8, 6
# Sizes for a test; what is not here is as the registry builds it.
_VECTORS = {"network": "mlp", "network_options": {"hidden": [16]}, "places": 4}
SMALL = {
    **dict.fromkeys(QUANTIZERS[1:], _VECTORS),
    "autoencoder-kl": {"channels": 4, "multipliers": [1, 2], "groups": 2},
    "vq-vae": {"network_options": {"channels": 4, "multipliers": [1, 2], "groups": 2}},
    "hvae": {"levels": 2, "width": 16},
    "vrae": {"hidden": 16},
    "factor": {"objective_options": {"hidden": [64, 64]}},
    "latent-diffusion": {"objective_options": {"start": 3, "channels": 8}},
    "vae-gan": {"objective_options": {"channels": 8}},
}
WAYS: dict[str, dict[str, str]] = {name: {"model": name} for name in sorted(MODELS)}
WAYS |= {
    name: {"model": "ae" if name.startswith("rae") else "vae", "objective": name}
    for name in OBJECTIVE_NAMES[1:]
}
WAYS |= {name: {"model": "vq-vae", "quantizer": name} for name in QUANTIZERS[1:]}
# Posteriors and priors that combine are trained in pairs.
PAIRS = [("planar", "gaussian"), ("radial", "mixture"), ("iaf", "maf"), ("realnvp", "iaf"),
         ("gaussian", "realnvp"), ("vmf", "standard"), ("poincare", "standard")]  # fmt: skip
WAYS |= {
    f"{posterior}, {prior}": {"model": "vae", "posterior": posterior, "prior": prior}
    for posterior, prior in PAIRS
}


def test_every_part_is_among_them():
    posteriors, priors = (set(names) for names in zip(*PAIRS, strict=True))
    assert posteriors == set(POSTERIORS)
    assert priors == set(PRIORS) - {"vamp"}  # the model vamp-vae


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_by_the_commands(name, tmp_path, monkeypatch, capsys):
    """Killed between two checkpoints and resumed, a run ends in the bits of a whole one."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        assert status == 0, capsys.readouterr()

    parts = {key: value for key, value in WAYS[name].items() if key != "model"}
    sizes = SMALL.get(WAYS[name]["model"], {}) | SMALL.get(name, {})
    model_args = {"latent_dim": 4, **sizes, **parts} if "posterior" in parts else {**sizes, **parts}
    (tmp_path / "config.yaml").write_text(json.dumps({"model_args": model_args}))  # JSON is YAML
    train = ["train", "--config", tmp_path / "config.yaml", "--model", WAYS[name]["model"],
             "--data", "fashion10k", "--max-steps", STEPS, "--batch-size", 32, "--device", "cpu",
             "--tensorboard", "off", "--checkpoint.every-steps", 4]  # fmt: skip
    run(*train, "--out", tmp_path / "whole")
    taken, step = [0], Step.__call__

    def killed(self, *share):
        taken[0] += 1
        if taken[0] == KILLED_AT:
            raise Killed
        return step(self, *share)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Step, "__call__", killed)
        main([str(a) for a in (*train, "--out", tmp_path / "cut")])
    torch.manual_seed(1)
    run("resume", tmp_path / "cut")
    whole, cut = (
        checkpoint.load(tmp_path / run / "checkpoints" / "last") for run in ("whole", "cut")
    )
    assert whole.state["reached"]["step"] == cut.state["reached"]["step"] == STEPS
    for key, value in whole.weights.items():
        assert torch.equal(value, cut.weights[key]), key
        assert not value.is_floating_point() or value.isfinite().all(), key

    capsys.readouterr()
    run("evaluate", tmp_path / "cut", "--n", 32, "--num-samples", 2)
    assert "reconstruction_mse" in capsys.readouterr().out
    run("sample", tmp_path / "cut", "--n", 4, "--out", tmp_path / "drawn.npy")
    drawn = np.load(tmp_path / "drawn.npy")
    assert drawn.shape == (4, 1, 28, 28) and np.isfinite(drawn).all() and drawn.std() > 0
