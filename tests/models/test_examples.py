"""Every configuration in examples/ names a model that exists, with options that it takes."""

from pathlib import Path

import pytest
import torch

from vae_fast.models import MODELS, build

CONFIGS = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def read(path):
    return pytest.importorskip("yaml").safe_load(path.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_of_an_example_runs(path):
    config = read(path)
    if config.get("data") not in ("fashion10k", None) or config["model"] not in MODELS:
        pytest.skip("not a model of the registry on the embedded images")
    torch.manual_seed(0)
    model = build(config["model"], (1, 28, 28), **config.get("model_args", {}))
    if getattr(model, "dataset_size", 0) is None:
        model.dataset_size = 9000  # as the trainer does
    x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    y = (torch.arange(4),) if model.uses_labels else ()
    out = model.loss(x, *y)
    assert out.loss.isfinite() and 100 < out.recon < 2000
    assert model.sample(2).shape == (2, 1, 28, 28)


def test_every_model_has_an_example():
    named = {read(path)["model"] for path in CONFIGS}
    assert set(MODELS) <= named
