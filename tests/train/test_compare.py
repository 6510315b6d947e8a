import pytest
import torch

import vae_fast
from vae_fast.train import Trainer
from vae_fast.train.compare import Comparison, compare_backends

native = pytest.mark.skipif(
    vae_fast.info()["native cpu"] != "yes", reason="native kernels are not built"
)


@native
def test_both_backends_train_alike_and_the_run_is_left_alone(config, clothes):
    config.epochs = 1
    trainer = Trainer(config, train_data=clothes[0], val_data=clothes[1])
    trainer.fit()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    noise = torch.get_rng_state()
    found = compare_backends(trainer, rounds=2, steps=12)
    assert found.loss["native"] == pytest.approx(found.loss["reference"], rel=0.02)
    assert all(speed > 0 for speed in found.samples_per_second.values())
    assert torch.equal(noise, torch.get_rng_state())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert vae_fast.get_backend() == "auto"


def test_words():
    text = str(
        Comparison(
            {"native": 3000.0, "reference": 1500.0}, {"native": 1.5, "reference": 1.25}, 40, 7
        )
    )
    assert "3,000 samples/s   1.50 nats" in text
    assert "native is 2.00 times as fast" in text
