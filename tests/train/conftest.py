import pytest
import torch

from vae_fast.data import load
from vae_fast.train import TrainConfig


@pytest.fixture(scope="session")
def clothes():
    """1,000 training and 200 validation images of fashion10k."""
    return load("fashion10k").images[:1000], load("fashion10k", split="val").images[:200]


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        epochs=2,
        batch_size=100,
        log_every=4,
        device="cpu",
        out=str(tmp_path / "run"),
        model_args={"latent_dim": 4, "network_options": {"hidden": [32]}},
    )


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, request):
    """Draw nothing, unless the test's name has "picture": drawing takes longer than training."""
    if "picture" not in request.node.name and "folder_of_a_run" not in request.node.name:
        monkeypatch.setattr("vae_fast.train.trainer.draw_pictures", lambda *_: [])


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: in small problems on a busy machine, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
