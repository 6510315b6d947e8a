"""A model in a user's own file trains by its import path; the documented example is one."""

from pathlib import Path

import pytest
import torch

from tests.fresh import python
from vae_fast import noise, tasks
from vae_fast.models import build

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_model.py"


def test_the_example_is_short_and_right(monkeypatch):
    assert len(EXAMPLE.read_text().splitlines()) < 40
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    torch.manual_seed(0)
    model = build("my_model:BrightnessVAE", (1, 4, 4), latent_dim=3).double()
    x, key = torch.rand(5, 1, 4, 4, dtype=torch.float64), noise.new_key()
    z = torch.randn(5, 3, dtype=torch.float64)
    shape, brightness = torch.sigmoid(model.decoder(z)), torch.sigmoid(model.brightness(z))
    torch.testing.assert_close(
        torch.sigmoid(model.decode(z)), (shape * brightness).view(5, 1, 4, 4)
    )
    model.loss(x, noise_key=key).loss.backward()
    assert model.brightness.weight.grad.any()
    assert tasks.generate(model, 3).shape == (3, 1, 4, 4)


def test_it_trains_by_the_command_line(tmp_path):
    pytest.importorskip("jsonargparse")
    pytest.importorskip("safetensors")
    run = tmp_path / "run"
    done = python(
        f"import runpy, sys; sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "runpy.run_module('vae_fast', run_name='__main__')",
        "train", "--model", "my_model:BrightnessVAE", "--epochs", "1", "--batch-size", "500",
        "--out", str(run), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (run / "samples.png").stat().st_size > 1000


def test_five_methods_are_enough(tmp_path, monkeypatch):
    """Without a base class of ours: the tools may use only what the interface names."""
    (tmp_path / "bare.py").write_text(
        "import torch\n"
        "class Bare(torch.nn.Module):\n"
        "    def __init__(self, input_shape):\n"
        "        super().__init__()\n"
        "        self.input_shape = input_shape\n"
        "        self.mean = torch.nn.Parameter(torch.zeros(input_shape))\n"
        "    def encode(self, x): return x[:, :1], torch.zeros_like(x[:, :1])\n"
        "    def decode(self, z): return self.mean.expand(len(z), *self.mean.shape)\n"
        "    def loss(self, x, **_): return (x - self.mean).square().sum()\n"
        "    def reconstruct(self, x): return self.decode(x)\n"
        "    def sample(self, n): return self.decode(torch.zeros(n))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model, x = build("bare:Bare", (4,)), torch.randn(6, 4)
    assert tasks.generate(model, 5, batch_size=2).shape == (5, 4)
    assert torch.equal(tasks.reconstruct(model, x), torch.zeros(6, 4))
    assert torch.equal(tasks.encode(model, x), x[:, :1])
