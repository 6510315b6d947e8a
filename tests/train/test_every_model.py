"""Every model of the registry resumes to the same bits, and trains on several ranks."""

import json

import pytest
import torch

from tests.models.test_every_model import NAMES, OPTIONS, SHAPE
from tests.train import ranks
from tests.train.test_resume import Killed, assert_same_run, stop_at
from vae_fast.data import as_data
from vae_fast.train import TrainConfig, Trainer
from vae_fast.train.config import CheckpointConfig


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    return as_data((images, torch.arange(count) % 10))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_bits(name, precision, tmp_path):
    goes_on(name, OPTIONS[name], precision, tmp_path)


PARTS = {
    "capacity": {"objective": "capacity", "objective_options": {"rise": 12}},
    "factor": {"objective": "factor", "objective_options": {"hidden": [8]}},
    "vae-gan": {"objective": "vae-gan", "objective_options": {"channels": 4}},
    "vae-gan in turn": {
        "objective": "vae-gan",
        "objective_options": {"channels": 4, "simultaneous": False},
    },
    "hamiltonian": {"objective": "hamiltonian"},
    "vmf": {"posterior": "vmf"},
    "iaf": {"posterior": "iaf", "prior": "realnvp"},
    "vq": {
        "network": "mlp",
        "code_dim": 3,
        "quantizer_options": {"size": 8, "update": "gradient", "rotation": True, "heads": 3},
    },
    "latent-diffusion": {
        "objective": "latent-diffusion",
        "objective_options": {"channels": 4, "start": 3, "adversarial": 0.1},
        "quantizer_options": {"size": 8},
        "network_options": {"channels": 4, "multipliers": [1, 2], "groups": 2},
    },
    "rvq": {"network": "mlp", "code_dim": 2, "quantizer": "rvq", "quantizer_options": {"size": 4}},
}


@pytest.mark.parametrize("name", PARTS)
def test_an_accumulating_run_resumes_to_the_same_bits(name, tmp_path):
    """What counts steps, trains in phases, or follows running means."""
    small = {"network_options": {"hidden": [16]}, "latent_dim": 3}
    codes = name in ("vq", "rvq", "latent-diffusion")
    if codes:
        small = {"network_options": {"hidden": [16]}}
    goes_on("vq-vae" if codes else "vae", {**small, **PARTS[name]}, "fp32", tmp_path)


def goes_on(name, model_args, precision, tmp_path):
    """Stopped in the second of two epochs, when steps are already replayed."""
    given = {"train_data": data(64, 1), "val_data": data(8, 2)}

    def make(folder, **options):
        config = TrainConfig(
            model=name,
            model_args=model_args,
            precision=precision,
            emulate_bf16=True,
            epochs=2,
            batch_size=8,
            log_every=3,
            ema=0.9,
            device="cpu",
            out=str(tmp_path / folder),
            **options,
        )
        return Trainer(config, **given)

    whole = make("whole")
    whole.fit()
    first = whole.step.model.state_dict()
    cut = make("cut", checkpoint=CheckpointConfig(every_steps=5, keep=2))
    stop_at(cut, 13, Killed())
    with pytest.raises(Killed):
        cut.fit()
    torch.manual_seed(123)
    again = Trainer.resume(cut.folder.path, **given)
    assert again.progress.step == 10
    again.fit()
    assert_same_run(whole, again)
    fresh = make("fresh").model.state_dict()
    assert any(not torch.equal(first[key], fresh[key]) for key in first)


@pytest.mark.slow
def test_on_two_ranks(tmp_path):
    out = tmp_path / "two.json"
    processes = ranks.start(2, "-m", "tests.train.every_model_ranks", out)
    assert [p.wait() for p in processes] == [0, 0]
    results = json.loads(out.read_text())
    assert sorted(results) == NAMES
    for name, found in results.items():
        assert found["off"] < 1e-4, (name, found)
        assert found["alike"] and found["finite"], (name, found)
        assert found["moved"] > 0.7, (name, found)
        assert found["noise"][0] != found["noise"][1], (name, found)
