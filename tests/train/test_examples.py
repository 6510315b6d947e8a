"""The configurations in examples/ are ones that train."""

from pathlib import Path

import pytest
import yaml

from vae_fast.data import load
from vae_fast.train import Trainer
from vae_fast.train.config import from_dict

EXAMPLES = Path(__file__).parents[2] / "examples"
# These are trained. The others are larger or tested elsewhere: only their configuration is checked.
SMALL = {"fashion", "beta_vae", "careful", "binarized"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    config = from_dict(yaml.safe_load(path.read_text()))
    config.device, config.emulate_bf16, config.out = "cpu", True, str(tmp_path / "run")
    config.check()
    if path.stem in SMALL:
        train, val = (load(config.data, split=s).slice(0, 64) for s in ("train", "val"))
        config.epochs, config.batch_size, config.tensorboard = 1, 32, "off"
        result = Trainer(config, train_data=train, val_data=val).fit()
        assert 300 < result.loss < 600
